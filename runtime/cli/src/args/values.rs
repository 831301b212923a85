//! Values of flags that clap does not know by itself.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr};

use clap::ValueEnum;
use ir::{CudaArch, DType};

/// More threads than any machine has are a slip of the keyboard.
const MAX_THREADS: usize = 4096;

/// Token ids, perhaps none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens(pub(crate) Vec<u32>);

impl FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Tokens, String> {
        if text.trim().is_empty() {
            return Ok(Tokens(Vec::new()));
        }
        let id = |part: &str| {
            let wrong = |_| format!("`{}` is no token id; write ids like 1,2,3", part.trim());
            part.trim().parse().map_err(wrong)
        };
        Ok(Tokens(text.split(',').map(id).collect::<Result<_, _>>()?))
    }
}

/// The number of a GPU: `cuda:1`.
pub(crate) fn gpu(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "write the number of a GPU like cuda:1".into())
}

/// Which way collectives of ranks on GPUs go.
pub(crate) fn route(text: &str) -> Result<exec::Route, String> {
    match text {
        "auto" => Ok(exec::Route::Auto),
        "host" => Ok(exec::Route::Host),
        "nccl" => Ok(exec::Route::Nccl),
        "nccl-sums" => Ok(exec::Route::NcclSums),
        _ => Err("write auto, host, nccl or nccl-sums".into()),
    }
}

/// A number of bytes: `4096`, `512MiB`, `2GiB`, `1.5GB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err("write a size like 2GiB or 512MiB".into()),
    };
    let number: f64 = number.parse().map_err(|_| "write a size like 2GiB or 512MiB".to_owned())?;
    let bytes = number * unit;
    if !(1.0..1e18).contains(&bytes) {
        return Err(format!("{text} is no size of memory"));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(bytes as u64)
}

/// Bounds of a named dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The dimension.
    pub(crate) name: String,
    /// Smallest value.
    pub(crate) lo: i64,
    /// Largest value.
    pub(crate) hi: i64,
}

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Bound, String> {
        // Rust's own way to include the end is understood.
        let text = text.replace("..=", "..");
        let parts = text.rsplit_once('=').filter(|(name, _)| !name.is_empty());
        let bound = parts.and_then(|(name, range)| {
            let (lo, hi) = range.split_once("..").unwrap_or((range, range));
            Some(Bound { name: name.into(), lo: lo.parse().ok()?, hi: hi.parse().ok()? })
        });
        match bound {
            None => Err("write NAME=LO..HI, both included, or NAME=SIZE".into()),
            Some(b) if b.lo < 0 => Err(format!("{} is no size", b.lo)),
            Some(b) if b.hi < b.lo => Err(format!("{} is below {}", b.hi, b.lo)),
            Some(b) => Ok(b),
        }
    }
}

/// A file for a named input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    /// The input.
    pub(crate) name: String,
    /// Its file.
    pub(crate) file: PathBuf,
}

impl FromStr for Input {
    type Err = String;

    fn from_str(text: &str) -> Result<Input, String> {
        let parts =
            text.split_once('=').filter(|(name, file)| !name.is_empty() && !file.is_empty());
        let (name, file) = parts.ok_or("write NAME=FILE.npy")?;
        Ok(Input { name: name.into(), file: file.into() })
    }
}

/// A processor to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetCpu {
    /// AVX2 and FMA: most x86 processors since 2013
    #[value(name = "x86-64-v3")]
    X86_64V3,
    /// All that this machine has
    Native,
}

/// What the weights of products become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quantize {
    /// 8-bit integers: half the memory of bf16
    Q8,
    /// 4-bit integers: a quarter of it
    Q4,
    /// 8-bit floats (e4m3), activations too: for `--target cuda:sm_90a`
    Fp8,
}

/// A library that may compute products on GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GpuLibrary {
    /// cuBLASLt, which is part of CUDA
    Cublaslt,
}

/// What the weights of products are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are those of the types")]
pub(crate) enum Family {
    F32,
    Bf16,
    F16,
    Q8,
    Q4,
    Fp8,
}

pub(super) fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads: Option<NonZeroUsize> = text.parse().ok();
    threads
        .filter(|n| n.get() <= MAX_THREADS)
        .ok_or_else(|| format!("write a number from 1 to {MAX_THREADS}"))
}

/// A kind of device to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// This machine's kind of processor.
    Cpu,
    /// Every GPU that there are kernels for.
    Gpus,
    /// GPUs of one architecture.
    Gpu(CudaArch),
}

pub(super) fn target(text: &str) -> Result<Chosen, String> {
    match text {
        "cpu" => Ok(Chosen::Cpu),
        "cuda" => Ok(Chosen::Gpus),
        "cuda:sm_80" => Ok(Chosen::Gpu(CudaArch::Sm80)),
        "cuda:sm_90a" => Ok(Chosen::Gpu(CudaArch::Sm90a)),
        _ => Err("targets are `cpu`, `cuda`, `cuda:sm_80` and `cuda:sm_90a`".into()),
    }
}

pub(super) fn dtype(text: &str) -> Result<DType, String> {
    text.parse()
        .ok()
        .filter(|d| matches!(d, DType::F32 | DType::Bf16 | DType::F16))
        .ok_or_else(|| "weights are stored as one of f32, bf16, f16".into())
}

pub(super) fn kv_dtype(text: &str) -> Result<DType, String> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::Bf16),
        "f16" => Ok(DType::F16),
        "int8" => Ok(DType::I8),
        "fp8" => Ok(DType::F8E4M3),
        _ => Err("keys and values are kept as one of f32, bf16, f16, int8, fp8".into()),
    }
}

pub(super) fn at_least_zero(text: &str) -> Result<f64, String> {
    number(text, |v| v >= 0.0).ok_or_else(|| "write a finite number of at least 0".into())
}

pub(super) fn above_zero(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0).ok_or_else(|| "write a finite number above 0".into())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    number(text, |v| v > 0.0 && v <= 1.0).ok_or_else(|| "write a number above 0, up to 1".into())
}

pub(super) fn probability(text: &str) -> Result<f64, String> {
    number(text, |v| (0.0..=1.0).contains(&v)).ok_or_else(|| "write a number from 0 to 1".into())
}

pub(super) fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("an empty text is everywhere".into()) } else { Ok(text.into()) }
}

fn number(text: &str, is_good: impl Fn(f64) -> bool) -> Option<f64> {
    text.parse().ok().filter(|v: &f64| v.is_finite() && is_good(*v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("512 mib"), Ok(512 << 20));
        assert_eq!(size("2GB"), Ok(2_000_000_000));
        for wrong in ["", "GiB", "2XB", "-1", "0", "1e30", "9999999999TiB", "1.2.3"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_read() {
        assert_eq!("1, 2,3".parse(), Ok(Tokens(vec![1, 2, 3])));
        assert_eq!("".parse(), Ok(Tokens(vec![])));
        for wrong in ["1,,2", "1,", "x", "-1", "4294967296"] {
            assert!(wrong.parse::<Tokens>().is_err(), "{wrong}");
        }
        let bound = |lo, hi| Ok(Bound { name: "batch".into(), lo, hi });
        assert_eq!("batch=1..8".parse(), bound(1, 8));
        assert_eq!("batch=4".parse(), bound(4, 4));
        assert_eq!("batch=1..=8".parse(), bound(1, 8));
        for wrong in
            ["=1..2", "batch=", "batch=1..", "batch=..2", "batch=2..1", "batch=-1..2", "1..2"]
        {
            assert!(wrong.parse::<Bound>().is_err(), "{wrong}");
        }
        let input = "x=a=b.npy".parse();
        assert_eq!(input, Ok(Input { name: "x".into(), file: "a=b.npy".into() }));
        assert!("x".parse::<Input>().is_err());
        assert_eq!(at_least_zero("-0"), Ok(-0.0));
        assert!(at_least_zero("nan").is_err() && share("0").is_err() && probability("1").is_ok());
    }
}
