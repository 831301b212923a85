//! Steps of ranks on devices of their own.

use std::time::Duration;

use exec::{
    Route,
    collectives::{Options, World, run_threads},
};
use train::MeshConfig;

use super::*;

/// Ranks along the axes of a mesh, and the stage of ZeRO.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranks {
    pub(crate) pipeline: usize,
    pub(crate) data: usize,
    pub(crate) tensor: usize,
    pub(crate) zero: u8,
    /// Steps that they take.
    pub(crate) steps: usize,
}

/// Documents of a micro-batch.
const DOCUMENTS: usize = 1;

/// Loss and norm of the gradient of steps with two micro-steps of a rank's own documents each, and
/// of stages the loss behind them, as rank 0 has them; one device for each rank.
pub(crate) fn steps_of_ranks(
    case: &str,
    ranks: Ranks,
    how: impl FnOnce(&mut CompileOptions),
    (devices, route): (Vec<Device>, Route),
) -> Vec<[f64; 2]> {
    let mut options = options_of(adamw(0.1));
    let training = options.training.as_mut().unwrap();
    training.zero = Zero { stage: ranks.zero, ranks: u32::try_from(ranks.data).unwrap() };
    training.tensor = u32::try_from(ranks.tensor).unwrap();
    training.stages = ranks.pipeline;
    how(&mut options);
    let kind = if devices[0].facts().is_some() { "gpu" } else { "cpu" };
    let Ranks { pipeline, data, tensor, zero, steps } = ranks;
    let name = format!("devices-{kind}-{case}-{pipeline}-{data}-{tensor}-{zero}");
    let (path, _) = compile_to(&name, &folder(case), &options);
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let documents = Documents::read();
    let mut quiet = Options::default();
    quiet.report = Arc::new(|_| ());
    // Devices that are emulated take their time.
    quiet.deadline = Duration::from_secs(300);
    let ends = run_threads(pipeline * data * tensor, &quiet, |world: &World| {
        let mesh = MeshConfig { pipeline, data, tensor, zero, ..MeshConfig::default() };
        let device = &devices[world.rank()];
        let mut rank = Rank::new(world, &mesh)?;
        assert_eq!(rank.link(device, route)?, None);
        let model = Model::load(artifact.clone(), device.clone())?;
        let mut step = TrainStep::load(&model, &rank)?;
        step.reserve(2)?;
        begin(&mut step, case)?;
        let mut trainer = Trainer::new(step, rule(), 0);
        let own = rank.data_rank() * 2 * DOCUMENTS;
        let batches = [0, DOCUMENTS].map(|i| documents.batch(own + i..own + i + DOCUMENTS));
        let step = |_| {
            let metrics = trainer.advance(&batches)?;
            Ok([metrics.loss, metrics.grad_norm])
        };
        let mut found = (0..steps).map(step).collect::<Result<Vec<_>, TrainError>>()?;
        if pipeline > 1 {
            found.push([trainer.evaluate(batches[..1].to_vec())?.unwrap_or_default(), 1.0]);
        }
        Ok::<_, TrainError>(found)
    });
    let mut ends: Vec<_> = ends.into_iter().map(Result::unwrap).collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "ranks differ");
    ends.swap_remove(0)
}
