//! A prompt and what has been generated after it.

use crate::{
    BlockManager, BlockTable,
    block_manager::{BlockCopy, Opened},
    prefix_cache::Salt,
};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At this end-of-sequence token, its last.
    EndOfSequence(u32),
    /// At this token, its last, which the request wants it to end at.
    StopToken(u32),
    /// It has as many tokens as were asked for.
    Length,
    /// At the stop string of this number.
    Stop(usize),
    /// The caller wanted no more.
    Cancelled,
}

/// What identifies a sequence, in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A sequence as the scheduler sees it; `T` is whatever else belongs to it.
#[derive(Debug)]
pub struct Sequence<T> {
    /// Its number.
    pub id: SequenceId,
    /// Lower goes first.
    pub priority: i32,
    /// The prompt, then the new tokens.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens at most, prompt and new ones.
    pub max_len: usize,
    /// Sequences that will go on from the same prompt beside this one.
    pub forks: usize,
    /// Position from which on a row of logits is wanted after every token of the prompt; from then
    /// on nothing is taken from the prefix cache.
    pub rows_from: Option<usize>,
    /// What else belongs to it.
    pub state: T,
    /// Tokens whose keys and values are in the blocks.
    pub(crate) computed: usize,
    pub(crate) table: BlockTable,
    salt: Salt,
    /// Times that a later sequence went before it.
    pub(crate) overtaken: u32,
    /// The last step that it took part in.
    pub(crate) last_step: u64,
}

impl<T> Sequence<T> {
    /// A sequence that has computed nothing.
    pub fn new(
        id: SequenceId,
        prompt: Vec<u32>,
        max_tokens: usize,
        salt: Option<&str>,
        blocks: &BlockManager,
        state: T,
    ) -> Sequence<T> {
        let salt: Salt = salt.map(Into::into);
        Sequence {
            id,
            priority: 0,
            prompt_len: prompt.len(),
            max_len: prompt.len() + max_tokens,
            tokens: prompt,
            forks: 0,
            rows_from: None,
            state,
            computed: 0,
            table: blocks.table(salt.clone()),
            salt,
            overtaken: 0,
            last_step: 0,
        }
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The new tokens.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Tokens whose keys and values are still to be computed.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether one new token is all that is pending.
    pub(crate) fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.computed >= self.prompt_len
    }

    /// Tokens that may come from the prefix cache: not the last, whose logits are wanted.
    pub(crate) fn cacheable(&self) -> &[u32] {
        let most = self.tokens.len() - 1;
        &self.tokens[..self.rows_from.map_or(most, |rows| rows.min(most))]
    }

    pub(crate) fn salt(&self) -> &Salt {
        &self.salt
    }

    /// Takes from the prefix cache what it has.
    pub(crate) fn open(&mut self, blocks: &mut BlockManager) -> Option<BlockCopy> {
        let Opened { table, cached_tokens, copy } =
            blocks.open(self.salt.clone(), self.cacheable());
        self.computed = cached_tokens;
        blocks.release(std::mem::replace(&mut self.table, table));
        copy
    }

    /// Another sequence that shares all that this one has computed.
    pub(crate) fn fork(&self, id: SequenceId, blocks: &mut BlockManager, state: T) -> Sequence<T> {
        Sequence {
            id,
            priority: self.priority,
            tokens: self.tokens.clone(),
            prompt_len: self.prompt_len,
            max_len: self.max_len,
            forks: 0,
            rows_from: None,
            state,
            computed: self.computed,
            table: blocks.fork(&self.table, self.computed),
            salt: self.salt.clone(),
            overtaken: 0,
            last_step: self.last_step,
        }
    }

    /// Gives its blocks back; what it has computed may survive in the prefix cache.
    pub(crate) fn close(&mut self, blocks: &mut BlockManager) {
        let empty = blocks.table(self.salt.clone());
        blocks.release(std::mem::replace(&mut self.table, empty));
        self.computed = 0;
    }
}
