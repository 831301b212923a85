//! The collectives: every one is an exchange of messages between all members of a group.
//!
//! In the first exchange every member sends something to every other one, be it empty, so that
//! members which mean different collectives notice. A long vector is reduced in two exchanges:
//! each member folds its shard of all vectors, then shows it to the others. A short one is shown
//! whole and folded by everybody. Both fold each element in the order of ranks, so they agree.

use ir::DType;

use super::{
    CollectiveError, Reduce, Shards, Turn,
    call::Op,
    exchange::{around, bytes, check, check_reduce},
    reduce::Fold,
};

/// A vector of so many bytes is short.
const SHORT: usize = 8 << 10;

impl Turn<'_> {
    /// Every member's `data` becomes the reduction of all.
    ///
    /// bf16 and f16 are folded in f32 and rounded once.
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed; [`CollectiveError::Usage`] if the type
    /// cannot be reduced so, or the length is not a multiple of its size.
    pub fn all_reduce(
        &self,
        reduce: Reduce,
        dtype: DType,
        data: &mut [u8],
    ) -> Result<(), CollectiveError> {
        let op = Op::AllReduce(reduce);
        let elements = data.len() / dtype.size();
        check(op, dtype, elements, data.len(), "data")?;
        check_reduce(op, reduce, dtype)?;
        let call = self.core.call(op, dtype, elements, 0);
        self.record(&call, data.len(), |transport| {
            if data.len() <= SHORT {
                let own = data.to_vec();
                let sends = self.to_others(|_| &own);
                let mut fold = Fold::new(reduce, dtype);
                let mut sink = self.folding(&mut fold, Some(&own), data);
                let from = self.parts_of_all(|_| own.len());
                return transport.exchange(&call, 0, &sends, true, &from, &mut sink);
            }
            let shards = Shards::even(elements, self.size());
            let (head, own, tail) = self.split(&shards, dtype, data);
            let (head, tail, own_bytes) = (&*head, &*tail, own.len());
            let part = |index| around(head, own_bytes, tail, bytes(&shards, dtype, index));
            let sends = self.to_others(part);
            self.fold(transport, &call, (reduce, &sends), None, own)?;
            self.show(transport, &call, 1, &shards, data)
        })
    }

    /// `output` becomes this member's shard of the reduction of all `input`s.
    ///
    /// Followed by [`all_gather`](Self::all_gather) it gives what `all_reduce` gives, bit for bit.
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce); [`CollectiveError::Usage`] also if `input` is not as
    /// long as all shards, or `output` not as this member's.
    pub fn reduce_scatter(
        &self,
        reduce: Reduce,
        dtype: DType,
        shards: &Shards,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), CollectiveError> {
        let op = Op::ReduceScatter(reduce);
        check_reduce(op, reduce, dtype)?;
        self.check_shards(op, shards)?;
        check(op, dtype, shards.elements(), input.len(), "input")?;
        check(op, dtype, shards.range(self.core.index).len(), output.len(), "output")?;
        let call = self.core.call(op, dtype, shards.elements(), shards.digest());
        let part = |index| &input[bytes(shards, dtype, index)];
        self.record(&call, input.len(), |transport| {
            let sends = self.to_others(part);
            self.fold(transport, &call, (reduce, &sends), Some(part(self.core.index)), output)
        })
    }

    /// [`reduce_scatter`](Self::reduce_scatter) where the result replaces this member's shard of
    /// `data`; the other shards stay as they are.
    ///
    /// # Errors
    /// As there.
    pub fn reduce_scatter_in_place(
        &self,
        reduce: Reduce,
        dtype: DType,
        shards: &Shards,
        data: &mut [u8],
    ) -> Result<(), CollectiveError> {
        let op = Op::ReduceScatter(reduce);
        check_reduce(op, reduce, dtype)?;
        self.check_shards(op, shards)?;
        check(op, dtype, shards.elements(), data.len(), "data")?;
        let call = self.core.call(op, dtype, shards.elements(), shards.digest());
        self.record(&call, data.len(), |transport| {
            let (head, own, tail) = self.split(shards, dtype, data);
            let (head, tail, own_bytes) = (&*head, &*tail, own.len());
            let part = |index| around(head, own_bytes, tail, bytes(shards, dtype, index));
            let sends = self.to_others(part);
            self.fold(transport, &call, (reduce, &sends), None, own)
        })
    }

    /// `output` becomes all members' shards.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed; [`CollectiveError::Usage`] if `input` is
    /// not as long as this member's shard, or `output` not as all.
    pub fn all_gather(
        &self,
        dtype: DType,
        shards: &Shards,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), CollectiveError> {
        self.check_shards(Op::AllGather, shards)?;
        let own = shards.range(self.core.index).len();
        check(Op::AllGather, dtype, own, input.len(), "input")?;
        check(Op::AllGather, dtype, shards.elements(), output.len(), "output")?;
        output[bytes(shards, dtype, self.core.index)].copy_from_slice(input);
        self.all_gather_in_place(dtype, shards, output)
    }

    /// [`all_gather`](Self::all_gather) where this member's shard is in `data` already.
    ///
    /// # Errors
    /// As there.
    pub fn all_gather_in_place(
        &self,
        dtype: DType,
        shards: &Shards,
        data: &mut [u8],
    ) -> Result<(), CollectiveError> {
        self.check_shards(Op::AllGather, shards)?;
        check(Op::AllGather, dtype, shards.elements(), data.len(), "data")?;
        let call = self.core.call(Op::AllGather, dtype, shards.elements(), shards.digest());
        self.record(&call, data.len(), |transport| self.show(transport, &call, 0, shards, data))
    }

    /// Sends shard `i` of `input` to member `i`, and receives shard `i` of `output` from it.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed, or a member sends another length than is
    /// expected; [`CollectiveError::Usage`] if a buffer is not as long as its shards, or this
    /// member would send itself another length than it expects.
    pub fn all_to_all(
        &self,
        dtype: DType,
        (sent, input): (&Shards, &[u8]),
        (received, output): (&Shards, &mut [u8]),
    ) -> Result<(), CollectiveError> {
        let (op, index) = (Op::AllToAll, self.core.index);
        self.check_shards(op, sent)?;
        self.check_shards(op, received)?;
        check(op, dtype, sent.elements(), input.len(), "input")?;
        check(op, dtype, received.elements(), output.len(), "output")?;
        let own = &input[bytes(sent, dtype, index)];
        check(op, dtype, received.range(index).len(), own.len(), "the part that stays")?;
        output[bytes(received, dtype, index)].copy_from_slice(own);
        let call = self.core.call(op, dtype, 0, 0);
        self.record(&call, input.len(), |transport| {
            let sends = self.to_others(|index| &input[bytes(sent, dtype, index)]);
            let from = self.parts_of_all(|index| bytes(received, dtype, index).len());
            let mut sink = |index: usize, offset: usize, chunk: &[u8]| {
                let start = bytes(received, dtype, index).start + offset;
                output[start..start + chunk.len()].copy_from_slice(chunk);
            };
            transport.exchange(&call, 0, &sends, false, &from, &mut sink)
        })
    }

    /// Every member's `data` becomes that of member `root`.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed; [`CollectiveError::Usage`] if there is no
    /// such member.
    pub fn broadcast(&self, root: usize, data: &mut [u8]) -> Result<(), CollectiveError> {
        self.core.check_member("broadcast", root)?;
        let op = Op::Broadcast(u32::try_from(root).unwrap_or(u32::MAX));
        let call = self.core.call(op, DType::U8, data.len(), 0);
        let len = data.len();
        self.record(&call, len, |transport| {
            let from = self.parts_of_all(|index| if index == root { len } else { 0 });
            if self.core.index == root {
                let sends = self.to_others(|_| &*data);
                return transport.exchange(&call, 0, &sends, false, &from, &mut |_, _, _| ());
            }
            let sends = self.to_others(|_| &[]);
            let mut sink = |_: usize, offset: usize, chunk: &[u8]| {
                data[offset..offset + chunk.len()].copy_from_slice(chunk);
            };
            transport.exchange(&call, 0, &sends, true, &from, &mut sink)
        })
    }

    /// Returns when all members have called it.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed.
    pub fn barrier(&self) -> Result<(), CollectiveError> {
        let call = self.core.call(Op::Barrier, DType::U8, 0, 0);
        self.record(&call, 0, |transport| {
            let sends = self.to_others(|_| &[]);
            let from = self.parts_of_all(|_| 0);
            transport.exchange(&call, 0, &sends, true, &from, &mut |_, _, _| ())
        })
    }
}
