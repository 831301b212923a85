//! The file that a compiled model travels in: `model.brolly`.
//!
//! It is a valid safetensors file, so any tool can list its weights:
//!
//! ```text
//! u64 n | header: JSON of n bytes, padded with spaces to a page | data
//! ```
//!
//! The header's `__metadata__` holds `brolly.manifest`, the [`Manifest`] as a JSON string, and
//! `brolly.digest`, its blake3. The data are, in this order, `__code.cpu` (one position-independent
//! image, mapped read-execute from the file) or `__code.cuda` (modules for GPUs), `__text` and
//! `__report` (JSON) and the packed weights. What is a page or more begins on a page boundary,
//! everything else on 64 bytes; since safetensors allows no holes, tensors `__pad.N` of zeros fill
//! the gaps. The whole header follows from the manifest, and every byte of the file is checked by
//! it: manifest, code and text when the file is [opened](Artifact::open), weights too unless they
//! are large (see [`Artifact::verify_weights`]).
//!
//! **Versions.** [`FORMAT`] counts changes of the manifest or the calling convention of kernels,
//! even additions. A runtime reads [`OLDEST_FORMAT`]`..=`[`FORMAT`] and refuses anything else: an
//! older runtime cannot know what a newer manifest means, and a newer one says when it has dropped
//! an old number. Format 2 added [`Program::window`](crate::Program::window), format 3
//! [`Program::collectives`](crate::Program::collectives) and
//! [`Program::parts`](crate::Program::parts), format 4 [`ShardOf::split`](crate::ShardOf::split),
//! format 5 [`Manifest::modules`], [`Kernel::cuda`](crate::Kernel::cuda) and [`Manifest::random`],
//! format 6 [`Manifest::folds`], format 7 [`CudaCode::library`](crate::CudaCode::library);
//! manifests of older formats lack them.
//!
//! **Trust.** Digests find damage, not malice: an artifact is executable code, so run only those
//! whose origin you trust, as with any program. A file that is merely wrong, whatever its bytes, is
//! an error and never a crash before its code runs.
//!
//! The same contents give the same file, byte for byte.

mod check;
mod error;
mod layout;
mod manifest;
mod random;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use check::MAX_SIZE;
pub use error::ArtifactError;
pub use manifest::{Digest, Manifest, PackedWeight, Section};
pub use read::{Artifact, VERIFY_AT_OPEN_BYTES, parse};
pub use write::{Contents, WeightSpec, write, write_on};

/// The format that this crate writes, and the newest that it reads.
pub const FORMAT: u32 = 7;

/// The oldest format that this crate reads.
pub const OLDEST_FORMAT: u32 = 1;

/// Sections of at least this many bytes begin on a multiple of it.
pub const PAGE: u64 = 4096;
