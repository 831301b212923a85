//! What ranks send each other.

use ir::{CollectiveOp, Port, Program};
use train::TrainStep;

/// Bytes that a rank sends in a step of so many micro-steps.
pub(super) fn bytes(step: &TrainStep, micro_steps: u64) -> u64 {
    let sent = |entry: &str| -> u64 {
        let is_entry = |program: &&Program| {
            let end = program.name.strip_prefix(entry);
            end.is_some_and(|end| end.is_empty() || end.starts_with('.'))
        };
        let own = step.programs().filter(is_entry);
        own.map(|program| sent_bytes(program) + handed_bytes(program)).sum()
    };
    let of_each = sent("accumulate") + sent("forward") + sent("backward");
    of_each * micro_steps + sent("norm") + sent("refresh")
}

/// Bytes that a stage of a pipeline hands to its neighbours.
fn handed_bytes(program: &Program) -> u64 {
    let is_handed =
        |port: &&Port| ["handed.", "returned."].iter().any(|k| port.name.starts_with(k));
    let bytes = |port: &Port| port.ty.bytes().bounds(&program.symbols).hi;
    let handed = program.outputs.iter().filter(is_handed).map(bytes);
    handed.map(|bytes| u64::try_from(bytes).unwrap_or(0)).sum()
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
