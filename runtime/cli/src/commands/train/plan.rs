//! What a run takes, before it begins.

use ir::{CollectiveOp, Program};
use train::{Dataset, TrainConfig, TrainStep};

use super::failure;
use crate::{
    failure::{Failure, Result},
    output, table,
};

/// What is about to be done, in a few lines; a rank's bytes by what they are for.
pub(super) fn tell(
    config: &TrainConfig,
    step: &TrainStep,
    dataset: &Dataset,
    done: u64,
) -> Result<()> {
    let elements: usize = step.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let planned = step.planned().map_err(failure)?;
    planned.check_limit().map_err(Failure::input)?;
    let cap = config.memory.device.map_or(u64::MAX, |size| size.0);
    if planned.total() > cap {
        return Err(Failure::input(format!(
            "{} are planned, more than memory.device, {}: take a smaller data.micro_batch, a higher \
             mesh.zero on more ranks, or a larger memory.device",
            table::bytes(planned.total()),
            table::bytes(cap)
        )));
    }
    let (rows, documents) = (dataset.rows(), dataset.documents());
    let ranks = step.rank().data_ranks();
    let of_rank = if ranks > 1 { " a rank" } else { "" };
    let kinds = Kinds::of(step);
    output::tell(&format!(
        "{elements} parameters, {} steps from {} on, {rows} rows of {} tokens from {documents} \
         documents\n{} planned{of_rank}: parameters {}, gradients {}, optimizer {}, activations {}, \
         the rest {}\n",
        config.train.steps,
        done + 1,
        dataset.seq_len(),
        table::bytes(planned.total()),
        table::bytes(kinds.parameters),
        table::bytes(kinds.gradients),
        table::bytes(kinds.optimizer),
        table::bytes(planned.arena_bytes),
        table::bytes(planned.total() - planned.state_bytes - planned.arena_bytes),
    ));
    if ranks > 1 {
        let sent = |entry: &str| {
            let program = step.programs().find(|program| program.name == entry);
            program.map_or(0, |program| sent_bytes(program, ranks as u64))
        };
        let micro_steps = config.train.grad_accum as u64;
        let step = sent("accumulate") * micro_steps + sent("norm") + sent("refresh");
        output::tell(&format!(
            "{ranks} ranks, ZeRO stage {}: a rank sends {} in a step\n",
            config.mesh.zero,
            table::bytes(step),
        ));
    }
    Ok(())
}

/// Bytes of states by what they are for.
struct Kinds {
    parameters: u64,
    gradients: u64,
    optimizer: u64,
}

impl Kinds {
    fn of(step: &TrainStep) -> Kinds {
        let mut kinds = Kinds { parameters: 0, gradients: 0, optimizer: 0 };
        for (name, bytes) in step.state_bytes() {
            let kind = name.split('.').next().unwrap_or_default();
            *match kind {
                "param" | "weight" => &mut kinds.parameters,
                "grad" => &mut kinds.gradients,
                _ => &mut kinds.optimizer,
            } += bytes;
        }
        kinds
    }
}

/// Bytes that a rank sends in the collectives of a program: a rank's part of the tensor to each
/// other rank in a gather or scatter, and both in a sum.
fn sent_bytes(program: &Program, ranks: u64) -> u64 {
    let of_each = program.collectives.iter().map(|collective| {
        let elements = collective.elements.bounds(&program.symbols).hi;
        let bytes = u64::try_from(elements).unwrap_or(0) * collective.dtype.size() as u64;
        let once = bytes / ranks * (ranks - 1);
        if collective.op == CollectiveOp::AllReduce { 2 * once } else { once }
    });
    of_each.sum()
}
