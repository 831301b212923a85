//! Compiled kernels by what they follow from, for whoever keeps them.

use std::fmt;

use crate::mlir::{self, Cpu};

/// The digest of everything that an object follows from: the kernel's text, the processor, this
/// crate's version, the code that turns text into objects, and LLVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey([u8; 32]);

/// Where compiled kernels are kept. What [`load`](Self::load) returns is linked without another
/// look, so it must be what was stored.
pub trait Objects: fmt::Debug + Send + Sync {
    /// The object of that key, if it is there and sound.
    fn load(&self, key: &ObjectKey) -> Option<Vec<u8>>;

    /// Keeps an object, or not.
    fn store(&self, key: &ObjectKey, object: &[u8]);
}

impl ObjectKey {
    /// The key of a kernel's text compiled for `cpu`.
    pub(crate) fn of(mlir: &str, cpu: &Cpu) -> ObjectKey {
        let llvm = mlir::llvm_version();
        let parts =
            [env!("CARGO_PKG_VERSION"), mlir::SOURCE, &llvm, &cpu.name, &cpu.features, mlir];
        let mut h = blake3::Hasher::new();
        for part in parts {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        ObjectKey(*h.finalize().as_bytes())
    }
}

impl From<[u8; 32]> for ObjectKey {
    fn from(bytes: [u8; 32]) -> ObjectKey {
        ObjectKey(bytes)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_text_processor_and_features_apart() {
        let v3 = Cpu::x86_64_v3();
        let of = ObjectKey::of;
        assert_eq!(of("a", &v3), of("a", &v3));
        let avx = Cpu { features: "+avx2".into(), ..v3.clone() };
        let others = [of("b", &v3), of("a", &Cpu::named("x86-64-v4")), of("a", &avx)];
        assert!(others.iter().all(|key| *key != of("a", &v3)));
        // A part's end is no other part's beginning.
        let moved = [("x86", "-64a"), ("x86-64", "a")];
        let [a, b] =
            moved.map(|(cpu, rest)| of("", &Cpu { name: cpu.into(), features: rest.into() }));
        assert_ne!(a, b);
        assert_eq!(ObjectKey::from([0xab; 32]).to_string(), "ab".repeat(32));
    }
}
