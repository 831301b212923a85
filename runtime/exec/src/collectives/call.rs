//! What a rank is doing when it meets others: compared at each meeting, and named in errors.

use std::fmt;

use ir::DType;

use super::reduce::Reduce;

/// A kind of meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    AllReduce(Reduce),
    ReduceScatter(Reduce),
    AllGather,
    /// From this rank of the group.
    Broadcast(u32),
    AllToAll,
    Barrier,
    /// From one rank to one other.
    Send,
    /// The beginning of a program whose collectives devices do by themselves.
    Program,
}

/// One collective of one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Of the group.
    pub(super) group: u64,
    /// Which one of the group it is, from 1 on; messages are numbered by pair and direction.
    pub(super) seq: u64,
    pub(super) op: Op,
    pub(super) dtype: DType,
    /// In all; 0 where each rank has a number of its own.
    pub(super) elements: u64,
    /// Digest of how they are split.
    pub(super) layout: u64,
    /// What the caller says the step is, which is told and not compared.
    pub(super) step: u64,
}

/// What messages are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    from: usize,
    group: u64,
    seq: u64,
    phase: u8,
    is_send: bool,
}

impl Op {
    /// As three numbers: kind, reduction, root.
    pub(super) fn code(self) -> (u8, u8, u32) {
        let reduction = |reduce: Reduce| match reduce {
            Reduce::Sum => 0,
            Reduce::Max => 1,
            Reduce::Min => 2,
            Reduce::And => 3,
            Reduce::Or => 4,
        };
        match self {
            Op::AllReduce(reduce) => (0, reduction(reduce), 0),
            Op::ReduceScatter(reduce) => (1, reduction(reduce), 0),
            Op::AllGather => (2, 0, 0),
            Op::Broadcast(root) => (3, 0, root),
            Op::AllToAll => (4, 0, 0),
            Op::Barrier => (5, 0, 0),
            Op::Send => (6, 0, 0),
            Op::Program => (7, 0, 0),
        }
    }

    /// What has this code.
    pub(super) fn from_code((kind, reduction, root): (u8, u8, u32)) -> Option<Op> {
        let reduce = *Reduce::ALL.get(usize::from(reduction))?;
        Some(match kind {
            0 => Op::AllReduce(reduce),
            1 => Op::ReduceScatter(reduce),
            2 => Op::AllGather,
            3 => Op::Broadcast(root),
            4 => Op::AllToAll,
            5 => Op::Barrier,
            6 => Op::Send,
            7 => Op::Program,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Op::AllReduce(_) => "all_reduce",
            Op::ReduceScatter(_) => "reduce_scatter",
            Op::AllGather => "all_gather",
            Op::Broadcast(_) => "broadcast",
            Op::AllToAll => "all_to_all",
            Op::Barrier => "barrier",
            Op::Send => "send",
            Op::Program => "program",
        }
    }
}

impl Call {
    /// Whether two ranks that come to it mean the same.
    pub(super) fn meets(&self, other: &Call) -> bool {
        let what = |call: &Call| (call.op, call.dtype, call.elements, call.layout);
        what(self) == what(other)
    }

    /// Under which a rank's message of a phase of it is found.
    pub(super) fn key(&self, from: usize, phase: u8) -> Key {
        let is_send = self.op == Op::Send;
        Key { from, group: self.group, seq: self.seq, phase, is_send }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {}", self.seq, self.op.name())?;
        let (dtype, elements) = (self.dtype.name(), self.elements);
        match self.op {
            Op::AllReduce(reduce) | Op::ReduceScatter(reduce) => {
                write!(f, "({}, {elements} x {dtype})", reduce.name())
            }
            Op::AllGather => write!(f, "({elements} x {dtype})"),
            Op::Broadcast(root) => write!(f, "(from {root}, {elements} bytes)"),
            Op::Send => write!(f, "({elements} bytes)"),
            Op::Program => {
                write!(f, "({elements} collectives, sizes {:08x})", self.layout & 0xffff_ffff)
            }
            Op::AllToAll | Op::Barrier => Ok(()),
        }?;
        if matches!(self.op, Op::ReduceScatter(_) | Op::AllGather) {
            write!(f, " in shards {:08x}", self.layout & 0xffff_ffff)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back() {
        let mut ops = vec![Op::AllGather, Op::Broadcast(7), Op::AllToAll, Op::Barrier, Op::Send];
        ops.push(Op::Program);
        ops.extend(Reduce::ALL.map(Op::AllReduce));
        ops.extend(Reduce::ALL.map(Op::ReduceScatter));
        for op in ops {
            assert_eq!(Op::from_code(op.code()), Some(op));
        }
        assert_eq!(Op::from_code((8, 0, 0)), None);
        assert_eq!(Op::from_code((0, 5, 0)), None);
    }
}
