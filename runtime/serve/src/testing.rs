//! A stand-in for a compiled model: its logits depend on the tokens that it sees, read back from
//! paged memory, so a wrong slot, position or table shows in the result.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{Batch, BlockCopy, Fetched, Heads, Limits, Logits, RowSource, ServeError, StepModel};

pub(crate) struct Mock {
    limits: Limits,
    /// The token at each slot.
    memory: Vec<i32>,
    far: Far,
    logsumexp: Vec<f32>,
    /// Tokens of each row's head; rows are at hand where there are none.
    pub(crate) head: usize,
    head_logits: Vec<f32>,
    head_tokens: Vec<i64>,
    fetched: Vec<Fetched>,
    /// The logit of token 7, where it is not the usual one.
    pub(crate) seven: Option<f32>,
    /// Whether what is beside a step is done while it is computed.
    pub(crate) goes_on_alone: bool,
    /// Sizes of the steps so far: tokens, sequences, rows.
    pub(crate) steps: Vec<(usize, usize, usize)>,
}

/// Logits as if on a device.
#[derive(Debug, Default)]
struct Far {
    logits: Vec<f32>,
    vocab_size: usize,
    fetches: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl RowSource for Far {
    fn fetch(&self, rows: &[usize]) -> Result<Vec<Box<[f32]>>, ServeError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.fetches.fetch_add(rows.len(), Ordering::Relaxed);
        let row = |row: &usize| self.logits[row * self.vocab_size..][..self.vocab_size].into();
        Ok(rows.iter().map(row).collect())
    }
}

impl Mock {
    pub(crate) fn new(change: impl FnOnce(&mut Limits)) -> Mock {
        let mut limits = Limits {
            vocab_size: 50,
            max_seq_len: 64,
            max_batch_tokens: 16,
            max_sequences: 4,
            max_rows: 16,
            block_size: 4,
            blocks: 48,
            table_len: 16,
            window: None,
        };
        change(&mut limits);
        let slots = limits.blocks as usize * limits.block_size;
        let memory = vec![-1; slots];
        let far = Far { vocab_size: limits.vocab_size, ..Far::default() };
        Mock {
            limits,
            memory,
            far,
            logsumexp: vec![],
            head: 0,
            head_logits: vec![],
            head_tokens: vec![],
            fetched: vec![],
            seven: None,
            goes_on_alone: false,
            steps: vec![],
        }
    }

    /// How many rows have been copied.
    pub(crate) fn fetches(&self) -> Arc<AtomicUsize> {
        self.far.fetches.clone()
    }

    /// How often rows were asked for.
    pub(crate) fn calls(&self) -> Arc<AtomicUsize> {
        self.far.calls.clone()
    }

    /// Logits after a context: a hash of all its tokens and each candidate.
    fn row(&self, context: &[i32]) -> Vec<f32> {
        let hash = |h: u32, t: u32| (h ^ t).wrapping_mul(0x0100_0193).rotate_left(5);
        let state = context.iter().fold(7, |h, t| hash(h, t.cast_unsigned()));
        let logit = |token: u32| hash(hash(state, token), 3) as f32 / u32::MAX as f32 * 8.0;
        (0..).map(logit).take(self.limits.vocab_size).collect()
    }
}

impl StepModel for Mock {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn goes_on_alone(&self) -> bool {
        self.goes_on_alone
    }

    fn step(&mut self, batch: &Batch, beside: &mut dyn FnMut()) -> Result<Logits<'_>, ServeError> {
        let Limits { max_batch_tokens, max_sequences, max_rows, .. } = self.limits;
        let (tokens, rows) = (batch.tokens.len(), batch.logit_rows.len());
        assert!((1..=max_batch_tokens).contains(&tokens) && rows <= max_rows);
        assert!((1..=max_sequences).contains(&batch.sequences()));
        assert_eq!(batch.block_tables.len(), batch.sequences() * self.limits.table_len);
        self.steps.push((tokens, batch.sequences(), rows));
        beside();
        let at = |i: i32| usize::try_from(i).unwrap();
        for (token, slot) in batch.tokens.iter().zip(&batch.slots) {
            self.memory[at(*slot)] = *token;
        }
        self.far.logits.clear();
        self.head_logits.clear();
        self.head_tokens.clear();
        self.fetched.clear();
        self.logsumexp.clear();
        for row in &batch.logit_rows {
            let sequence = batch.cu_seqlens.iter().filter(|c| *c <= row).count() - 1;
            let table = &batch.block_tables[sequence * self.limits.table_len..];
            let slot = |p: usize| {
                at(table[p / self.limits.block_size]) * self.limits.block_size
                    + p % self.limits.block_size
            };
            let position = at(batch.positions[at(*row)]);
            let first =
                self.limits.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let context: Vec<i32> = (first..=position).map(|p| self.memory[slot(p)]).collect();
            assert!(context.iter().all(|t| *t >= 0), "a key was never written");
            let mut logits = self.row(&context);
            logits[7] = self.seven.unwrap_or(logits[7]);
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            #[allow(clippy::cast_possible_truncation, reason = "logits are f32")]
            self.logsumexp.push(sum.ln() as f32);
            let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
            let mut best: Vec<usize> = (0..logits.len()).collect();
            best.sort_by(order);
            best.truncate(self.head);
            self.head_logits.extend(best.iter().map(|token| logits[*token]));
            self.head_tokens.extend(best.iter().map(|token| *token as i64));
            self.fetched.push(Fetched::new());
            self.far.logits.extend(logits);
        }
        let Mock { far, logsumexp, limits, fetched, head_logits, head_tokens, .. } = self;
        if self.head == 0 {
            return Ok(Logits::new(&far.logits, logsumexp, limits.vocab_size));
        }
        let heads = Heads { logits: head_logits, tokens: head_tokens };
        Ok(Logits::of_heads(heads, logsumexp, limits.vocab_size, far, fetched))
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), ServeError> {
        let size = self.limits.block_size;
        let from = copy.from as usize * size;
        self.memory.copy_within(from..from + size, copy.to as usize * size);
        Ok(())
    }
}
