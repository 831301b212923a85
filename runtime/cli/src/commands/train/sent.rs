//! What ranks send each other.

use ir::{CollectiveOp, Program};
use train::TrainStep;

/// Bytes that a rank sends in a step of so many micro-steps.
pub(super) fn bytes(step: &TrainStep, micro_steps: u64) -> u64 {
    let sent = |entry: &str| {
        let program = step.programs().find(|program| program.name == entry);
        program.map_or(0, sent_bytes)
    };
    sent("accumulate") * micro_steps + sent("norm") + sent("refresh")
}

/// Bytes that a rank sends in the collectives of a program: a rank's part of the tensor to each
/// other rank in a gather or scatter, and both in a sum.
fn sent_bytes(program: &Program) -> u64 {
    let of_each = program.collectives.iter().map(|collective| {
        let elements = collective.elements.bounds(&program.symbols).hi;
        let bytes = u64::try_from(elements).unwrap_or(0) * collective.dtype.size() as u64;
        let ranks = u64::from(collective.ranks.max(1));
        let once = bytes / ranks * (ranks - 1);
        if collective.op == CollectiveOp::AllReduce { 2 * once } else { once }
    });
    of_each.sum()
}
