//! The manifest: everything about an artifact but its bytes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{CudaModule, DType, Fold, ModelInfo, Program, Target};

/// A blake3 hash, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A part of the file that is not a weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// First byte, from the beginning of the data.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// blake3 of the bytes.
    pub digest: Digest,
}

/// A weight as kernels read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedWeight {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents as stored.
    pub shape: Vec<u64>,
    /// First byte, from the beginning of the data.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// blake3 of the bytes.
    pub digest: Digest,
    /// Names of the source tensors that it was made from.
    pub sources: Vec<String>,
}

/// What an artifact holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Number of the format, see [`FORMAT`](super::FORMAT).
    pub format: u32,
    /// Name and version of the compiler.
    pub compiler: String,
    /// What the code is compiled for.
    pub target: Target,
    /// The model.
    pub model: ModelInfo,
    /// Digest of the files that the model was compiled from.
    pub source_digest: Digest,
    /// The code image, or the modules' bytes one behind the other.
    pub code: Section,
    /// Modules of code for GPUs, which [`CudaVariant::module`](crate::CudaVariant::module) counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<CudaModule>,
    /// Tokenizer, chat template and generation defaults, as JSON that this crate does not look
    /// into.
    pub text: Section,
    /// What the compiler did and why not more, as JSON that this crate does not look into.
    pub report: Section,
    /// Entry points.
    pub programs: Vec<Program>,
    /// Sums for the collectives of entry points on GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folds: Vec<Fold>,
    /// Packed weights, which [`Region::Weight`](crate::Region::Weight) counts.
    pub weights: Vec<PackedWeight>,
    /// Where the weights are not in the file, but numbers that follow from this seed: their places
    /// are those that they would have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<u64>,
}

impl Manifest {
    /// Bytes of all packed weights, without padding.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.iter().fold(0, |sum, w| sum.saturating_add(w.bytes))
    }

    /// The program of an entry point.
    pub fn program(&self, entry: &str) -> Option<&Program> {
        self.programs.iter().find(|p| p.name == entry)
    }
}

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        let digit = |c: u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let mut out = [0; 32];
        let pairs = text.as_bytes().chunks_exact(2);
        let bytes: Option<Vec<u8>> =
            pairs.map(|p| Some(digit(p[0])? << 4 | digit(p[1])?)).collect();
        match bytes {
            Some(bytes) if text.len() == 64 => {
                out.copy_from_slice(&bytes);
                Ok(Digest(out))
            }
            _ => Err("a digest is 64 lowercase hexadecimal digits".into()),
        }
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
