//! What a step returns: logits, whole or as far as they are needed.
//!
//! A model whose logits lie in other memory returns the head of each row, from which most tokens
//! are drawn ([`Sampler::sample_from_head`](crate::Sampler::sample_from_head)), and a whole row
//! where it is asked for.

use std::{fmt::Debug, sync::OnceLock};

use crate::{ServeError, sampler};

/// Logits of a step, row by row of [`Batch::logit_rows`](crate::Batch::logit_rows).
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    rows: Rows<'a>,
    /// `[R]`
    logsumexp: &'a [f32],
    vocab_size: usize,
    heads: Option<Heads<'a>>,
}

#[derive(Clone, Copy, Debug)]
enum Rows<'a> {
    /// `[R, V]`
    Here(&'a [f32]),
    There(&'a dyn RowSource, &'a [Fetched]),
}

/// A row that was copied from elsewhere, once it was.
pub type Fetched = OnceLock<Box<[f32]>>;

/// Where rows of logits are that are not here.
pub trait RowSource: Debug {
    /// Copies rows of the last step.
    ///
    /// # Errors
    /// Whatever the device reports.
    fn fetch(&self, rows: &[usize]) -> Result<Vec<Box<[f32]>>, ServeError>;
}

/// The most likely tokens of all rows.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `[R, K]`: the largest logits of each row, in order.
    pub logits: &'a [f32],
    /// `[R, K]`: the tokens that they are of; of equal ones the smaller id comes first.
    pub tokens: &'a [i64],
}

/// The most likely tokens of a row, in order.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `[K]`: the largest logits, in order.
    pub logits: &'a [f32],
    /// `[K]`: the tokens that they are of; of equal ones the smaller id comes first.
    pub tokens: &'a [i64],
    /// The logarithm of the sum of the exponentials of all logits.
    pub logsumexp: f32,
    /// Logits of the whole row.
    pub vocab_size: usize,
}

impl<'a> Logits<'a> {
    /// Logits `[R, V]` and the logarithm of each row's sum of exponentials.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn new(logits: &'a [f32], logsumexp: &'a [f32], vocab_size: usize) -> Logits<'a> {
        assert_eq!(logits.len(), logsumexp.len() * vocab_size, "rows of logits");
        Logits { rows: Rows::Here(logits), logsumexp, vocab_size, heads: None }
    }

    /// Heads of rows that are elsewhere; `fetched` has a place for each row.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn of_heads(
        heads: Heads<'a>,
        logsumexp: &'a [f32],
        vocab_size: usize,
        source: &'a dyn RowSource,
        fetched: &'a [Fetched],
    ) -> Logits<'a> {
        let rows = logsumexp.len();
        assert_eq!(heads.logits.len(), heads.tokens.len(), "heads of rows");
        assert_eq!(heads.logits.len() % rows.max(1), 0, "heads of rows");
        assert!(fetched.len() >= rows, "places of rows");
        let heads = Some(heads);
        Logits { rows: Rows::There(source, fetched), logsumexp, vocab_size, heads }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.logsumexp.len()
    }

    /// Has rows copied together that are not here and will be asked for.
    ///
    /// # Errors
    /// Whatever the device reports that holds them.
    pub fn fetch(&self, rows: &[usize]) -> Result<(), ServeError> {
        let Rows::There(source, fetched) = self.rows else { return Ok(()) };
        let mut rows: Vec<usize> =
            rows.iter().copied().filter(|row| fetched[*row].get().is_none()).collect();
        rows.sort_unstable();
        rows.dedup();
        if rows.is_empty() {
            return Ok(());
        }
        for (row, copied) in rows.iter().zip(source.fetch(&rows)?) {
            fetched[*row].get_or_init(|| copied);
        }
        Ok(())
    }

    /// One row, which may have to be copied.
    ///
    /// # Errors
    /// Whatever the device reports that holds it.
    pub fn row(&self, row: usize) -> Result<&'a [f32], ServeError> {
        match self.rows {
            Rows::Here(logits) => Ok(&logits[row * self.vocab_size..][..self.vocab_size]),
            Rows::There(source, fetched) => {
                if let Some(row) = fetched[row].get() {
                    return Ok(row);
                }
                let copied = source.fetch(&[row])?.pop().unwrap_or_default();
                Ok(fetched[row].get_or_init(|| copied))
            }
        }
    }

    /// The head of a row, where it comes without the row.
    pub fn head(&self, row: usize) -> Option<Head<'a>> {
        let heads = self.heads?;
        let k = heads.logits.len() / self.rows();
        let of = row * k..(row + 1) * k;
        Some(Head {
            logits: &heads.logits[of.clone()],
            tokens: &heads.tokens[of],
            logsumexp: self.logsumexp[row],
            vocab_size: self.vocab_size,
        })
    }

    /// The logarithm of a row's sum of exponentials.
    pub fn logsumexp(&self, row: usize) -> f32 {
        self.logsumexp[row]
    }

    /// A token's logit.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn logit(&self, row: usize, token: u32) -> Result<f32, ServeError> {
        match self.head(row).and_then(|head| Some((head, head.place(token)?))) {
            Some((head, place)) => Ok(head.logits[place]),
            None => Ok(self.row(row)?[token as usize]),
        }
    }

    /// The place of a token among all, as [`rank`](crate::rank).
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn rank(&self, row: usize, token: u32) -> Result<usize, ServeError> {
        match self.head(row).and_then(|head| head.place(token)) {
            Some(place) => Ok(place + 1),
            None => Ok(sampler::rank(self.row(row)?, token)),
        }
    }

    /// Whether the whole row is needed for a token's logit, and for its rank and the `top` most
    /// likely ones where these are wanted.
    pub fn needs_row(&self, row: usize, token: u32, top: usize) -> bool {
        self.head(row).is_some_and(|head| {
            let tells_top = top <= head.logits.len() && head.logsumexp.is_finite();
            head.place(token).is_none() || (top > 0 && !tells_top)
        })
    }

    /// The `k` most likely tokens, as [`top_logprobs`](crate::top_logprobs).
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn top_logprobs(&self, row: usize, k: usize) -> Result<Vec<(u32, f32)>, ServeError> {
        let total = self.logsumexp(row);
        match self.head(row).filter(|head| k <= head.logits.len() && total.is_finite()) {
            Some(head) => {
                Ok(head.tokens().take(k).map(|(id, logit)| (id, logit - total)).collect())
            }
            None => Ok(sampler::top_logprobs(self.row(row)?, total, k)),
        }
    }
}

impl Head<'_> {
    /// Its tokens with their logits, the most likely first.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, f32)> {
        let token = |id: &i64| u32::try_from(*id).unwrap_or(u32::MAX);
        self.tokens.iter().map(token).zip(self.logits.iter().copied())
    }

    fn place(&self, token: u32) -> Option<usize> {
        self.tokens.iter().position(|id| *id == i64::from(token))
    }
}
