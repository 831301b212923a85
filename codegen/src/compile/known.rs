//! Which specifications have kernels, once that was found.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

use ir::KernelSpec;

/// Answers by the digest of the question.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<[u8; 32], Result<(), String>>>);

impl Known {
    /// The answer for a specification, which `find` finds unless it is known.
    ///
    /// # Errors
    /// Those of `find`.
    pub(super) fn or_find(
        &self,
        spec: &KernelSpec,
        find: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let key = digest(spec);
        let answers = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers().get(&key).cloned();
        known.unwrap_or_else(|| {
            let found = find();
            answers().insert(key, found.clone());
            found
        })
    }
}

/// A digest of all that a kernel's text follows from, the target aside.
fn digest(spec: &KernelSpec) -> [u8; 32] {
    let KernelSpec { op, attrs, operands, results, body, symbols } = spec;
    let mut text = format!("{op} {attrs:?} {operands:?} {results:?} {symbols:?}");
    if let Some(body) = body {
        // A string takes all that is written to it.
        let _ = write!(text, " {body}");
    }
    *blake3::hash(text.as_bytes()).as_bytes()
}
