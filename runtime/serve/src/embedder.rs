//! A compiled encoder: entry `embed`, with texts packed into batches.

use std::sync::Arc;

use exec::{Executable, Memory, Model, States};
use ir::Tensor;

use crate::{ServeError, verdict::Verdict};

/// The entry point.
pub(crate) const ENTRY: &str = "embed";

/// A loaded `embed`.
#[derive(Debug)]
pub(crate) struct Embedder {
    exe: Executable,
    verdict: Verdict,
    vocab_size: usize,
    max_seq_len: usize,
    max_batch_tokens: usize,
    max_sequences: usize,
}

impl Embedder {
    pub(crate) fn load(
        model: &Arc<Model>,
        max_seq_len: usize,
        verdict: Verdict,
    ) -> Result<Embedder, ServeError> {
        let artifact = model.artifact();
        let program = artifact.program(ENTRY)?;
        let most = |symbol: &str| {
            let bounds = program.symbols.get(symbol).copied();
            bounds.and_then(|b| usize::try_from(b.hi).ok()).ok_or_else(|| ServeError::Entry {
                entry: ENTRY,
                reason: format!("it has no symbol `{symbol}`"),
            })
        };
        let (max_batch_tokens, max_sequences) = (most("T")?, most("S")?);
        let threads = model.device().pool().threads();
        Memory::predict(artifact.manifest(), &[ENTRY], threads, &[])?
            .check_limit(model.device())?;
        Ok(Embedder {
            exe: Executable::load(model, ENTRY, &[])?,
            verdict,
            vocab_size: usize::try_from(artifact.manifest().model.vocab_size).unwrap_or(usize::MAX),
            max_seq_len: max_seq_len.min(max_batch_tokens),
            max_batch_tokens,
            max_sequences,
        })
    }

    /// One vector per list of tokens. Lists share runs as long as they fit; that changes no bit.
    pub(crate) fn embed(&mut self, lists: &[&[u32]]) -> Result<Vec<Vec<f32>>, ServeError> {
        self.check(lists)?;
        let mut vectors = Vec::with_capacity(lists.len());
        for range in packs(lists, self.max_batch_tokens, self.max_sequences) {
            vectors.extend(self.run(&lists[range])?);
        }
        check_finite(&vectors)?;
        Ok(vectors)
    }

    /// Runs it once on the program's own inputs and returns all its outputs.
    pub(crate) fn run_tensors(
        &mut self,
        inputs: &[(&str, Tensor)],
    ) -> Result<Vec<(Arc<str>, Tensor)>, ServeError> {
        let outputs = self.exe.run_tensors(inputs)?;
        self.verdict.wait()?;
        Ok(outputs)
    }

    pub(crate) fn executable(&mut self) -> &mut Executable {
        &mut self.exe
    }

    /// Memory: reserved, and in use.
    pub(crate) fn memory(&self) -> Result<(Memory, Memory), ServeError> {
        let model = self.exe.model();
        let threads = model.device().pool().threads();
        let predicted = Memory::predict(model.artifact().manifest(), &[ENTRY], threads, &[])?;
        Ok((predicted, Memory::measure(&[&self.exe], &States::none())))
    }

    /// Checks that the model takes each of the lists.
    pub(crate) fn check<L: AsRef<[u32]>>(&self, lists: &[L]) -> Result<(), ServeError> {
        let mut lists = lists.iter().map(AsRef::as_ref).enumerate();
        lists.try_for_each(|(index, tokens)| self.check_one(index, tokens))
    }

    fn check_one(&self, index: usize, tokens: &[u32]) -> Result<(), ServeError> {
        let refuse =
            |reason: String| Err(ServeError::request("text", format!("{index}: {reason}")));
        let (n, most) = (tokens.len(), self.max_seq_len);
        if n == 0 {
            return refuse("it has no tokens".into());
        }
        if n > most {
            return refuse(format!("{n} tokens are more than the {most} that the model takes"));
        }
        match tokens.iter().find(|token| **token as usize >= self.vocab_size) {
            Some(token) => {
                let size = self.vocab_size;
                refuse(format!("token {token} is not among the {size} of the vocabulary"))
            }
            None => Ok(()),
        }
    }

    fn run(&mut self, lists: &[&[u32]]) -> Result<Vec<Vec<f32>>, ServeError> {
        let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let tokens: Vec<i32> = lists.iter().copied().flatten().map(|t| t.cast_signed()).collect();
        let positions: Vec<i32> = lists.iter().flat_map(|list| (0..list.len()).map(int)).collect();
        let ends = lists.iter().scan(0, |end, list| {
            *end += list.len();
            Some(int(*end))
        });
        let cu_seqlens: Vec<i32> = std::iter::once(0).chain(ends).collect();
        let inputs = [("tokens", &tokens), ("positions", &positions), ("cu_seqlens", &cu_seqlens)];
        let ports = &self.exe.program().inputs;
        let is_read = |name: &str| ports.iter().any(|port| *port.name == *name);
        let inputs: Vec<(&str, &[u8])> = inputs
            .into_iter()
            .filter(|(name, _)| is_read(name))
            .map(|(name, values)| (name, bytemuck::cast_slice(values)))
            .collect();
        let symbols = [("T", i64::from(int(tokens.len()))), ("S", i64::from(int(lists.len())))];
        self.exe.run(&mut States::none(), &symbols, &inputs)?;
        self.verdict.wait()?;
        let vectors = self.exe.output::<f32>("embeddings")?;
        let size = vectors.len() / lists.len();
        Ok(vectors.chunks_exact(size.max(1)).map(<[f32]>::to_vec).collect())
    }
}

/// Checks that every component is a number.
fn check_finite(vectors: &[Vec<f32>]) -> Result<(), ServeError> {
    match vectors.iter().position(|vector| !vector.iter().all(|v| v.is_finite())) {
        Some(index) => {
            let what = format!("the embedding of text {index} holds NaN or infinity");
            Err(ServeError::NotFinite { what })
        }
        None => Ok(()),
    }
}

/// Ranges of lists, in order, that together have at most so many tokens and lists.
fn packs(
    lists: &[&[u32]],
    max_tokens: usize,
    max_lists: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = lists[start..].iter().take(max_lists.max(1)).take_while(|list| {
            tokens += list.len();
            tokens <= max_tokens
        });
        let range = start..start + fits.count();
        start = range.end;
        (!range.is_empty()).then_some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_refused_by_its_text() {
        assert!(check_finite(&[vec![1.0, -0.0], vec![]]).is_ok());
        for broken in [f32::NAN, f32::NEG_INFINITY] {
            let error = check_finite(&[vec![1.0], vec![0.0, broken]]).unwrap_err().to_string();
            assert!(error.starts_with("the embedding of text 1 holds NaN or infinity"), "{error}");
        }
    }

    #[test]
    fn lists_are_packed_in_order_within_the_limits() {
        let token = [0u32; 9];
        let lists: Vec<&[u32]> = [3, 4, 2, 9, 1, 1, 1, 1].iter().map(|n| &token[..*n]).collect();
        let packed: Vec<_> = packs(&lists, 9, 3).collect();
        assert_eq!(packed, [0..3, 3..4, 4..7, 7..8]);
        assert_eq!(packs(&[], 9, 3).count(), 0);
    }
}
