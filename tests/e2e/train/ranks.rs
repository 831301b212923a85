//! Several ranks: stages of ZeRO against each other, ranks against one, and what goes wrong.

use driver::KernelCache;
use exec::collectives::{Options, World, run_threads};
use ir::DType;
use train::MeshConfig;

use super::*;

/// A case compiled for a mesh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) case: &'static str,
    pub(super) dtype: DType,
    /// Ranks along the data axis.
    pub(super) ranks: usize,
    /// Ranks along the tensor axis, for each of these.
    pub(super) tensor: usize,
    pub(super) stage: u8,
}

/// What every rank has after some steps.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) losses: Vec<u64>,
    pub(super) norms: Vec<u64>,
    /// All states, put together.
    pub(super) states: Vec<(String, Vec<u8>)>,
    pub(super) planned: u64,
    pub(super) touched: u64,
    /// By kind: `param`, `weight`, `grad`, and the optimiser's.
    bytes: std::collections::BTreeMap<String, u64>,
}

impl Job {
    pub(super) fn of(case: &'static str, ranks: usize, stage: u8) -> Job {
        Job { case, dtype: DType::F32, ranks, tensor: 1, stage }
    }

    pub(super) fn model(self) -> Arc<Artifact> {
        let Job { case, dtype, ranks, tensor, stage } = self;
        let mut options = options_of(adamw(0.1));
        options.import.dtype = (dtype != DType::F32).then_some(dtype);
        options.kernel_cache = Some(KernelCache::at(&scratch().join("ranks-kernels")));
        let training = options.training.as_mut().unwrap();
        training.zero = Zero { stage, ranks: u32::try_from(ranks).unwrap() };
        training.tensor = u32::try_from(tensor).unwrap();
        let name = format!("ranks-{case}-{dtype}-{ranks}-{tensor}-{stage}");
        let (path, _) = compile_to(&name, &folder(case), &options);
        Arc::new(Artifact::open(&path).unwrap())
    }

    /// A trainer of one rank, its parameters those of the checkpoint.
    pub(super) fn trainer(
        self,
        artifact: &Arc<Artifact>,
        world: &World,
    ) -> Result<Trainer, TrainError> {
        let Job { ranks: data, tensor, stage: zero, .. } = self;
        let mesh = MeshConfig { data, tensor, zero, ..MeshConfig::default() };
        let rank = Rank::new(world, &mesh)?;
        let device = Device::cpu(std::num::NonZeroUsize::new(1)).unwrap();
        let mut step = TrainStep::load(&Model::load(artifact.clone(), device).unwrap(), &rank)?;
        begin(&mut step, self.case)?;
        Ok(Trainer::new(step, rule(), 0))
    }

    pub(super) fn run<R: Send>(
        self,
        body: impl Fn(&World, Trainer) -> Result<R, TrainError> + Sync,
    ) -> Vec<Result<R, TrainError>> {
        let artifact = self.model();
        let mut options = Options::default();
        options.report = Arc::new(|_| ());
        let body = |world: &World| body(world, self.trainer(&artifact, world)?);
        run_threads(self.ranks * self.tensor, &options, body)
    }

    /// Takes steps on every rank, which end with the same.
    pub(super) fn steps(self, numbers: std::ops::RangeInclusive<usize>) -> Outcome {
        let documents = Documents::read();
        let outcomes = self.run(|_, mut trainer| {
            let (mut losses, mut norms) = (Vec::new(), Vec::new());
            let rank = trainer.step().rank().data_rank();
            for number in numbers.clone() {
                let metrics = trainer.advance(&self.batches(&documents, number, rank))?;
                losses.push(metrics.loss.to_bits());
                norms.push(metrics.grad_norm.to_bits());
            }
            Ok(outcome(&trainer, losses, norms))
        });
        let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(|o| o.unwrap()).collect();
        for other in &outcomes[1..] {
            assert_eq!(outcomes[0].losses, other.losses);
            assert_eq!(outcomes[0].norms, other.norms);
            assert!(outcomes[0].states == other.states, "ranks hold different parameters");
        }
        outcomes.swap_remove(0)
    }

    /// A rank's part of the documents of a step.
    pub(super) fn batches(
        self,
        documents: &Documents,
        number: usize,
        rank: usize,
    ) -> Vec<MicroBatch> {
        let first = (number - 1) * GRAD_ACCUM * MICRO_BATCH;
        let all = GRAD_ACCUM * MICRO_BATCH;
        let own = first + all * rank / self.ranks..first + all * (rank + 1) / self.ranks;
        let middle = own.start + own.len() / 2;
        [own.start..middle, middle..own.end].map(|part| documents.batch(part)).into()
    }
}

pub(super) fn outcome(trainer: &Trainer, losses: Vec<u64>, norms: Vec<u64>) -> Outcome {
    let step = trainer.step();
    let names = step.states().map(|port| port.name.to_string());
    let names: Vec<String> = names.filter(|name| !name.starts_with("grad.")).collect();
    let whole = |name: String| {
        let bytes = step.whole_state(&name).unwrap().unwrap().into_owned();
        (name, bytes)
    };
    let states = names.into_iter().map(whole).collect();
    let mut bytes = std::collections::BTreeMap::new();
    for (name, size) in step.state_bytes() {
        *bytes.entry(name.split('.').next().unwrap().to_owned()).or_insert(0) += size;
    }
    let (planned, touched) = (step.planned().unwrap().total(), step.resident_bytes());
    Outcome { losses, norms, states, planned, touched, bytes }
}

/// Steps with both micro-steps; shards of odd lengths at three ranks.
#[test]
fn stages_of_zero_have_the_same_bits() {
    let jobs = [
        ("llama-gqa3", DType::F32, 2),
        ("llama-gqa3", DType::F32, 3),
        ("gpt2-gelu-new", DType::F32, 4),
        ("qwen3-mqa-tied", DType::Bf16, 2),
    ];
    for (case, dtype, ranks) in jobs {
        let job = |stage| Job { dtype, ..Job::of(case, ranks, stage) };
        let want = job(0).steps(1..=4);
        for stage in 1..=3 {
            let got = job(stage).steps(1..=4);
            let what = format!("{case}, {dtype}, {ranks} ranks, stage {stage}");
            assert_eq!((&got.losses, &got.norms), (&want.losses, &want.norms), "{what}");
            assert!(got.states == want.states, "{what}: parameters differ");
            assert!(got.touched <= got.planned, "{what}: {} of {}", got.touched, got.planned);
        }
    }
}

#[test]
fn ranks_take_the_steps_of_one() {
    let case = "llama-gqa3";
    let documents = Documents::read();
    let mut alone = Trainer::new(load(case, 1), rule(), 0);
    let want: Vec<f64> =
        (1..=20).map(|n| alone.advance(&batches(&documents, n)).unwrap().loss).collect();
    for (ranks, stage) in [(2, 2), (4, 3)] {
        let got = Job::of(case, ranks, stage).steps(1..=20);
        for (step, (want, got)) in want.iter().zip(&got.losses).enumerate() {
            let off = (f64::from_bits(*got) - want).abs() / want;
            assert!(off < 1e-6, "{ranks} ranks, stage {stage}, step {}: {off:.1e} off", step + 1);
        }
    }
}

/// Per element: 4 bytes each of parameter and gradient and 8 of AdamW in f32; 2 of the weight, 4
/// of its gradient and 12 in bf16. Rajbhandari et al. 2020, figure 1, with gradients of 4 bytes.
#[test]
fn a_rank_holds_what_the_formulas_say() {
    for (dtype, weight, optimizer) in [(DType::F32, 4, 8), (DType::Bf16, 2, 12)] {
        for (ranks, stages) in [(2, 1..=3), (4, 2..=3)] {
            for stage in stages {
                let job = Job { dtype, ..Job::of("llama-gqa3", ranks, stage) };
                let outcomes = job.run(|_, trainer| {
                    let sizes = trainer.step().parameters().iter().map(|p| {
                        let elements: usize = p.shape.iter().product();
                        (elements as u64, p.shape.len() >= 2)
                    });
                    let sizes: Vec<(u64, bool)> = sizes.collect();
                    Ok((outcome(&trainer, vec![], vec![]).bytes, sizes))
                });
                let (bytes, sizes) = outcomes.into_iter().next().unwrap().unwrap();
                let part = |least: u8, n: u64| match stage >= least {
                    true => n.div_ceil(ranks as u64),
                    false => n,
                };
                let want = sizes.iter().map(|(n, is_matrix)| {
                    // Vectors have no narrow copy.
                    let (weight, optimizer) = if *is_matrix { (weight, optimizer) } else { (4, 8) };
                    weight * part(3, *n) + 4 * part(2, *n) + optimizer * part(1, *n)
                });
                let got: u64 = bytes.values().sum();
                assert_eq!(
                    got,
                    want.sum::<u64>(),
                    "{dtype}, {ranks} ranks, stage {stage}: {bytes:?}"
                );
            }
        }
    }
}

#[test]
fn what_one_rank_made_that_is_not_finite_is_named_on_all() {
    let documents = Documents::read();
    let job = Job::of("llama-gqa3", 2, 0);
    let bad = "model.layers.1.mlp.up_proj.weight";
    let ends = job.run(|world, mut trainer| {
        trainer.advance(&job.batches(&documents, 1, world.rank()))?;
        // One rank's memory goes bad.
        if world.rank() == 1 {
            let name = format!("param.{bad}");
            let mut bytes = trainer.step().state(&name).unwrap().unwrap().to_vec();
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            assert!(trainer.step_mut().set_state(&name, &bytes).unwrap());
        }
        trainer.advance(&job.batches(&documents, 2, world.rank()))?;
        Ok(())
    });
    for end in ends {
        let error = end.unwrap_err().to_string();
        let want = "step 2: what comes out of `model.layers.1` on rank 1 is not finite";
        assert!(error.starts_with(want), "{error}");
    }
}

/// A checkpoint of two ranks at stage 3 goes on with the same bits there, and within rounding on
/// any other mesh.
#[test]
fn a_checkpoint_is_read_at_any_number_of_ranks() {
    let case = "llama-gqa3";
    let documents = Documents::read();
    let job = Job::of(case, 2, 3);
    let want = job.steps(1..=6);
    let dir = scratch().join("ranks-checkpoints");
    job.run(|world, mut trainer| {
        for number in 1..=3 {
            trainer.advance(&job.batches(&documents, number, world.rank()))?;
        }
        let mut checkpoints = Checkpoints::new(&dir, 2);
        let saved = Saved { step: 3, position: 3, run: "run".into(), loss_scale: None };
        checkpoints.save(trainer.step(), saved)?;
        checkpoints.finish()
    })
    .into_iter()
    .for_each(|end| end.unwrap());
    for (ranks, stage) in [(2, 3), (2, 1), (4, 2), (3, 3)] {
        let job = Job::of(case, ranks, stage);
        let artifact = job.model();
        let ends = run_threads(ranks, &Options::default(), |world: &World| {
            let mut step = job.trainer(&artifact, world)?.into_step();
            let saved = Checkpoints::new(&dir, 2).load::<u64>(&mut step, "run")?.unwrap();
            let mut trainer = Trainer::new(step, rule(), saved.step);
            let mut losses = Vec::new();
            for number in 4..=6 {
                let metrics = trainer.advance(&job.batches(&documents, number, world.rank()))?;
                losses.push(metrics.loss.to_bits());
            }
            Ok::<Outcome, TrainError>(outcome(&trainer, losses, vec![]))
        });
        for end in ends {
            let got = end.unwrap();
            for (got, want) in got.losses.iter().zip(&want.losses[3..]) {
                let [got, want] = [*got, *want].map(f64::from_bits);
                let most = if ranks == 2 { 0.0 } else { 1e-6 };
                let off = (got - want).abs() / want;
                assert!(off <= most, "{ranks} ranks, stage {stage}: {off:.1e} off");
            }
            assert!(ranks != 2 || got.states == want.states, "stage {stage}: parameters differ");
        }
    }
}
