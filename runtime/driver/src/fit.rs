//! Runs the passes, and finds the form of a training step that fits into memory.

use std::collections::BTreeMap;

use ir::{Module, Port, Program, Region};
use passes::{Plan, Recipe};

use crate::{
    CompileError, Keep, Training,
    pipeline::{Context, PASSES, Pass},
};

/// How many tensors an error names.
const NAMED: usize = 5;

/// The name of the pass from which on forms of a training step differ.
const DIFFERS: &str = "train-step";

/// Runs all passes by `run`. Of a training step, those that differ are run again with less kept
/// until the plan fits.
///
/// # Errors
/// What a pass reports; [`CompileError::Memory`] if nothing fits and something must.
pub(crate) fn lower(
    module: &mut Module,
    cx: &mut Context<'_>,
    training: Option<&Training>,
    must_fit: bool,
    mut run: impl FnMut(&'static Pass, &mut Module, &mut Context<'_>) -> Result<(), CompileError>,
) -> Result<(), CompileError> {
    let differs = PASSES.iter().position(|pass| pass.name == DIFFERS).unwrap_or(PASSES.len());
    let (common, rest) = PASSES.split_at(differs);
    for pass in common {
        run(pass, module, cx)?;
    }
    let keeps = training.map_or(vec![Keep::All], Training::keeps);
    let cap = training.and_then(|training| training.memory).unwrap_or(u64::MAX);
    let source = module.clone();
    for (number, keep) in keeps.iter().enumerate() {
        if number > 0 {
            *module = source.clone();
            cx.states.clear();
            cx.recipes.clear();
            cx.plans.clear();
        }
        cx.keep = *keep;
        for pass in rest {
            run(pass, module, cx)?;
        }
        let bytes = Bytes::of_stages(&cx.plans, &cx.recipes, cx.stages);
        if bytes.total() <= cap {
            break;
        }
        if must_fit && number + 1 == keeps.len() {
            return Err(bytes.too_many(cap, *keep));
        }
    }
    Ok(())
}

/// Bytes of plans, by what they are for.
#[derive(Debug, Default)]
struct Bytes {
    states: u64,
    arenas: u64,
    weights: u64,
    /// The largest tensors.
    largest: Vec<(u64, String)>,
    /// The stage that it is, of several.
    stage: Option<usize>,
}

impl Bytes {
    /// Those of the stage that needs most, with as many micro-batches in flight as it may have.
    fn of_stages(plans: &[Plan], recipes: &[Recipe], stages: usize) -> Bytes {
        let of = |stage: usize| {
            let is_own = |plan: &&Plan| plan.program.stage().is_none_or(|of| of == stage);
            let own = plans.iter().filter(is_own);
            Bytes { stage: Some(stage), ..Bytes::of(own, recipes, (stages - stage) as u64) }
        };
        match stages {
            0 | 1 => Bytes::of(plans.iter(), recipes, 1),
            _ => (0..stages).map(of).max_by_key(Bytes::total).unwrap_or_default(),
        }
    }

    fn of<'a>(plans: impl Iterator<Item = &'a Plan>, recipes: &[Recipe], in_flight: u64) -> Bytes {
        let mut bytes = Bytes::default();
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for plan in plans {
            let program = &plan.program;
            bytes.arenas += program.arena_bytes;
            let is_part = |port: &&Port| program.parts.iter().any(|part| part.state == port.name);
            for port in program.states.iter().filter(|port| !is_part(port)) {
                debug_assert!(matches!(port.place.region, Region::State(_)));
                let most = port.ty.bytes().bounds(&program.symbols).hi;
                let most = u64::try_from(most).unwrap_or(0);
                let copies = Program::copies(&port.name, in_flight);
                states.insert(&port.name, most.saturating_mul(copies));
            }
            let intervals = program.intervals.iter();
            bytes.largest.extend(intervals.map(|i| (i.bytes, format!("`{}`", i.name))));
        }
        bytes.states = states.values().sum();
        bytes.largest.extend(states.into_iter().map(|(name, n)| (n, format!("state `{name}`"))));
        for recipe in recipes {
            let ty = recipe.graph.ty(recipe.graph.outputs[0].1);
            let size = ty.bytes().as_const().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            bytes.weights += size;
        }
        bytes.largest.sort_by(|a, b| b.cmp(a));
        bytes.largest.dedup();
        bytes.largest.truncate(NAMED);
        bytes
    }

    fn total(&self) -> u64 {
        self.states + self.arenas + self.weights + exec::HOST_OVERHEAD_BYTES
    }

    fn too_many(&self, cap: u64, keep: Keep) -> CompileError {
        let Bytes { states, arenas, weights, largest, stage } = self;
        let largest: Vec<String> =
            largest.iter().map(|(bytes, name)| format!("{name} {bytes}")).collect();
        let of = match stage {
            Some(stage) => format!("in stage {stage}, with what is kept of micro-batches, "),
            None => String::new(),
        };
        let parts = format!(
            "{of}parameters, gradients and optimizer {states}, activations {arenas}, frozen \
             weights {weights}, the host {}; the largest tensors are {}",
            exec::HOST_OVERHEAD_BYTES,
            largest.join(", ")
        );
        let advice = match keep {
            Keep::Input => {
                "take a smaller data.micro_batch or data.seq_len, a higher mesh.zero on more \
                 ranks, or a larger memory.device"
            }
            _ => "let memory.recompute be \"auto\" or \"full\", or take a smaller data.micro_batch",
        };
        CompileError::Memory { bytes: self.total(), cap, parts, advice }
    }
}
