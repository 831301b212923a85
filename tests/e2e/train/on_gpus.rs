//! Steps of ranks on devices of their own.

use exec::{
    Route,
    collectives::{Options, World, run_threads},
};
use train::MeshConfig;

use super::*;

/// Ranks along the axes of a mesh, and the stage of ZeRO.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranks {
    pub(crate) data: usize,
    pub(crate) tensor: usize,
    pub(crate) zero: u8,
}

/// Documents of a micro-batch.
const DOCUMENTS: usize = 1;

/// Loss and norm of the gradient of two steps with two micro-steps of a rank's own documents each,
/// as rank 0 has them; one device for each rank.
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
    how(&mut options);
    let kind = if devices[0].facts().is_some() { "gpu" } else { "cpu" };
    let Ranks { data, tensor, zero } = ranks;
    let name = format!("devices-{kind}-{case}-{data}-{tensor}-{zero}");
    let (path, _) = compile_to(&name, &folder(case), &options);
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let documents = Documents::read();
    let mut quiet = Options::default();
    quiet.report = Arc::new(|_| ());
    let ends = run_threads(data * tensor, &quiet, |world: &World| {
        let mesh = MeshConfig { data, tensor, zero, ..MeshConfig::default() };
        let device = &devices[world.rank()];
        let mut rank = Rank::new(world, &mesh)?;
        assert_eq!(rank.link(device, route)?, None);
        let model = Model::load(artifact.clone(), device.clone())?;
        let mut step = TrainStep::load(&model, &rank)?;
        begin(&mut step, case)?;
        let mut trainer = Trainer::new(step, rule(), 0);
        let own = rank.data_rank() * 2 * DOCUMENTS;
        let batches = [0, DOCUMENTS].map(|i| documents.batch(own + i..own + i + DOCUMENTS));
        let step = |_| {
            let metrics = trainer.advance(&batches)?;
            Ok([metrics.loss, metrics.grad_norm])
        };
        (0..2).map(step).collect::<Result<Vec<_>, TrainError>>()
    });
    let mut ends: Vec<_> = ends.into_iter().map(Result::unwrap).collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "ranks differ");
    ends.swap_remove(0)
}
