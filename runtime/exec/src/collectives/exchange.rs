//! What the collectives are made of: exchanges of shards, folded or shown.

use std::{ops::Range, sync::Arc};

use ir::DType;

use super::{
    CollectiveError, Failure, Reduce, Shards, Turn,
    call::{Call, Op},
    inbox::{CHUNK, Incoming},
    reduce::Fold,
    transport::{Outgoing, Transport},
};

type Outcome = Result<(), Arc<Failure>>;

impl Turn<'_> {
    /// Folds the parts that others send in the order of ranks, with `own`, or else with what
    /// `output` holds, as this member's.
    pub(super) fn fold(
        &self,
        transport: &dyn Transport,
        call: &Call,
        (reduce, sends): (Reduce, &[Outgoing<'_>]),
        own: Option<&[u8]>,
        output: &mut [u8],
    ) -> Outcome {
        let from = self.parts_of_all(|_| output.len());
        let mut fold = Fold::new(reduce, call.dtype);
        let mut sink = self.folding(&mut fold, own, output);
        transport.exchange(call, 0, sends, false, &from, &mut sink)
    }

    pub(super) fn folding<'a>(
        &self,
        fold: &'a mut Fold,
        own: Option<&'a [u8]>,
        output: &'a mut [u8],
    ) -> impl FnMut(usize, usize, &[u8]) + 'a {
        let (me, last) = (self.core.index, self.size() - 1);
        move |index, offset, chunk| {
            let at = offset..output.len().min(offset + CHUNK);
            let values = match own {
                _ if index != me => chunk,
                Some(own) => &own[at.clone()],
                None => &output[at.clone()],
            };
            match index {
                0 => fold.first(values),
                _ => fold.next(values),
            }
            if index == last {
                fold.write(&mut output[at]);
            }
        }
    }

    /// Sends this member's shard of `data` to the others, and puts theirs in its place.
    pub(super) fn show(
        &self,
        transport: &dyn Transport,
        call: &Call,
        phase: u8,
        shards: &Shards,
        data: &mut [u8],
    ) -> Outcome {
        let (head, own, tail) = self.split(shards, call.dtype, data);
        let (start, end) = (head.len(), head.len() + own.len());
        let own = &*own;
        let sends = self.to_others(|_| own);
        let from = self.parts_of_all(|index| bytes(shards, call.dtype, index).len());
        let mut sink = |index: usize, offset: usize, chunk: &[u8]| {
            let at = bytes(shards, call.dtype, index).start + offset;
            let place = if at < start {
                &mut head[at..at + chunk.len()]
            } else if chunk.is_empty() {
                return;
            } else {
                &mut tail[at - end..at - end + chunk.len()]
            };
            place.copy_from_slice(chunk);
        };
        transport.exchange(call, phase, &sends, false, &from, &mut sink)
    }

    /// What lies before, in and behind this member's shard.
    pub(super) fn split<'d>(
        &self,
        shards: &Shards,
        dtype: DType,
        data: &'d mut [u8],
    ) -> (&'d mut [u8], &'d mut [u8], &'d mut [u8]) {
        let own = bytes(shards, dtype, self.core.index);
        let (head, rest) = data.split_at_mut(own.start);
        let (own, tail) = rest.split_at_mut(own.len());
        (head, own, tail)
    }

    pub(super) fn to_others<'d>(&self, part: impl Fn(usize) -> &'d [u8]) -> Vec<Outgoing<'d>> {
        let members = self.core.members.iter().enumerate();
        let others = members.filter(|(index, _)| *index != self.core.index);
        others.map(|(index, &to)| Outgoing { to, bytes: part(index) }).collect()
    }

    pub(super) fn parts_of_all(&self, bytes: impl Fn(usize) -> usize) -> Vec<Incoming> {
        let members = self.core.members.iter().enumerate();
        members.map(|(index, &from)| Incoming { from, bytes: bytes(index) }).collect()
    }

    pub(super) fn size(&self) -> usize {
        self.core.members.len()
    }

    pub(super) fn record(
        &self,
        call: &Call,
        bytes: usize,
        run: impl FnOnce(&dyn Transport) -> Outcome,
    ) -> Result<(), CollectiveError> {
        self.core.shared.record(call, bytes, run)
    }

    pub(super) fn check_shards(&self, op: Op, shards: &Shards) -> Result<(), CollectiveError> {
        if shards.ranks() == self.size() {
            return Ok(());
        }
        let reason = format!("{} shards for {} members", shards.ranks(), self.size());
        Err(CollectiveError::Usage { op: op.name(), reason })
    }
}

/// Another member's shard in what lies before and behind this one's.
pub(super) fn around<'d>(
    head: &'d [u8],
    own_bytes: usize,
    tail: &'d [u8],
    at: Range<usize>,
) -> &'d [u8] {
    if at.end <= head.len() {
        return &head[at];
    }
    let end = head.len() + own_bytes;
    &tail[at.start - end..at.end - end]
}

/// A shard's bytes.
pub(super) fn bytes(shards: &Shards, dtype: DType, index: usize) -> Range<usize> {
    let range = shards.range(index);
    range.start * dtype.size()..range.end * dtype.size()
}

pub(super) fn check(
    op: Op,
    dtype: DType,
    elements: usize,
    bytes: usize,
    what: &str,
) -> Result<(), CollectiveError> {
    if elements.checked_mul(dtype.size()) == Some(bytes) {
        return Ok(());
    }
    let name = dtype.name();
    let reason = format!("{what} has {bytes} bytes, which is not {elements} x {name}");
    Err(CollectiveError::Usage { op: op.name(), reason })
}

pub(super) fn check_reduce(op: Op, reduce: Reduce, dtype: DType) -> Result<(), CollectiveError> {
    match reduce.refuses(dtype) {
        Some(reason) => Err(CollectiveError::Usage { op: op.name(), reason }),
        None => Ok(()),
    }
}
