//! Rows of `seq_len` tokens, cut from documents.
//!
//! Documents stand one behind the other; a row is the next `seq_len` tokens of them. A document
//! that does not end with its row goes on at the start of the next one, as a segment of its own,
//! and the last token of the cut part still has the first of the rest as its target: so every
//! pair of neighbours in a document is learned exactly once, whatever its length. Nothing is
//! dropped, and nothing is padded but the last row of a file.

use super::{npy::Npy, shard::Shard, token::Token};

/// A target that is ignored, as `linear_cross_entropy` takes it.
pub const IGNORED: i32 = -100;

/// The rows of one file.
#[derive(Debug)]
pub(super) enum Part {
    Shard(Shard),
    Npy(Npy),
}

impl Part {
    pub(super) fn rows(&self, seq_len: usize) -> u64 {
        match self {
            Part::Shard(shard) => shard.tokens().div_ceil(seq_len as u64),
            Part::Npy(npy) => npy.rows(),
        }
    }

    /// Targets of a row that are learned.
    pub(super) fn targets(&self, row: u64, seq_len: usize) -> u64 {
        match self {
            Part::Shard(shard) => {
                pairs(window(shard, row, seq_len)).take(seq_len).filter(|p| p.1.is_some()).count()
                    as u64
            }
            Part::Npy(_) => seq_len as u64 - 1,
        }
    }

    /// Segments of a row.
    pub(super) fn segments(&self, row: u64, seq_len: usize) -> usize {
        match self {
            Part::Shard(shard) => {
                let row = shard.window(row * seq_len as u64, seq_len);
                let is_short = row.len() < seq_len;
                // The last token of a row ends a segment anyway.
                let inner = row.len().saturating_sub(1);
                1 + row.take(inner).filter(|t| t.is_last()).count() + usize::from(is_short)
            }
            Part::Npy(_) => 1,
        }
    }

    pub(super) fn add_to(&self, batch: &mut Batch, row: u64, seq_len: usize) {
        match self {
            Part::Shard(shard) => {
                let mut position = 0;
                for (token, target) in pairs(window(shard, row, seq_len)).take(seq_len) {
                    let target = target.map_or(IGNORED, |target| target.id().cast_signed());
                    batch.push(token.id().cast_signed(), target, position);
                    position += 1;
                    if token.is_last() {
                        batch.end_segment();
                        position = 0;
                    }
                }
            }
            Part::Npy(npy) => {
                let targets = npy.row(row).skip(1).chain([IGNORED]);
                for (position, (token, target)) in (0..).zip(npy.row(row).zip(targets)) {
                    batch.push(token, target, position);
                }
            }
        }
        batch.end_segment();
        batch.pad(seq_len);
    }
}

/// A row and the token behind it.
fn window(shard: &Shard, row: u64, seq_len: usize) -> impl ExactSizeIterator<Item = Token> {
    shard.window(row * seq_len as u64, seq_len + 1)
}

/// Tokens with the token to learn behind each, if any.
fn pairs(tokens: impl Iterator<Item = Token>) -> impl Iterator<Item = (Token, Option<Token>)> {
    let mut tokens = tokens.peekable();
    std::iter::from_fn(move || {
        let token = tokens.next()?;
        let next = tokens.peek().filter(|next| !token.is_last() && next.is_learned());
        Some((token, next.copied()))
    })
}

/// What one rank computes in one micro-step.
///
/// # Shapes
/// With T = `micro_batch x seq_len`: `tokens`, `targets` and `positions` are `[T]`; `cu_seqlens` is
/// `[S + 1]` for S segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, row after row.
    pub tokens: Vec<i32>,
    /// The token behind each in its document, or [`IGNORED`].
    pub targets: Vec<i32>,
    /// Where segments begin, and T. No segment sees another; no segment is in two rows.
    pub cu_seqlens: Vec<i32>,
    /// Places in the segment, from 0.
    pub positions: Vec<i32>,
}

impl Batch {
    pub(super) fn new(tokens: usize) -> Batch {
        let vec = || Vec::with_capacity(tokens);
        Batch { tokens: vec(), targets: vec(), cu_seqlens: vec![0], positions: vec() }
    }

    fn push(&mut self, token: i32, target: i32, position: i32) {
        self.tokens.push(token);
        self.targets.push(target);
        self.positions.push(position);
    }

    /// Ends the segment that has tokens, if one has.
    fn end_segment(&mut self) {
        let end = i32::try_from(self.tokens.len()).unwrap_or(i32::MAX);
        if self.cu_seqlens.last() != Some(&end) {
            self.cu_seqlens.push(end);
        }
    }

    /// Fills the row up with a segment that is not learned from; a whole one where there is none.
    pub(super) fn pad(&mut self, seq_len: usize) {
        let missing = self.tokens.len().next_multiple_of(seq_len) - self.tokens.len();
        self.pad_by(missing);
    }

    pub(super) fn pad_by(&mut self, tokens: usize) {
        for position in (0..i32::MAX).take(tokens) {
            self.push(0, IGNORED, position);
        }
        self.end_segment();
    }

    /// Targets that are learned, of this batch alone.
    #[must_use]
    pub fn target_count(&self) -> u64 {
        self.targets.iter().filter(|target| **target != IGNORED).count() as u64
    }
}
