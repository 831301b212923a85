//! Stages of a pipeline against a step of one rank.

use std::path::PathBuf;

use driver::{Keep, KernelCache};
use exec::collectives::{Options, World, run_threads};
use ir::DType;
use train::{MeshConfig, initialize};

use super::*;

/// A model of so many layers, with one family's configuration and random weights.
fn deep(family: &str, layers: usize) -> PathBuf {
    let text = std::fs::read(super::folder(family).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    config["num_hidden_layers"] = layers.into();
    if let Some(types) = config.get_mut("layer_types").and_then(|types| types.as_array_mut()) {
        let first = types[0].clone();
        types.resize(layers, first);
    }
    configuration(&format!("pipeline-{family}-{layers}"), &config)
}

/// A model compiled for a mesh, and how its steps are split.
#[derive(Clone, Copy)]
struct Job {
    family: &'static str,
    layers: usize,
    dtype: DType,
    pipeline: usize,
    data: usize,
    tensor: usize,
    zero: u8,
    micro_batches: usize,
    dropout: Option<f64>,
    keep: Option<Keep>,
}

/// One rank.
const ALONE: Job = Job {
    family: "llama-gqa3",
    layers: 4,
    dtype: DType::F32,
    pipeline: 1,
    data: 1,
    tensor: 1,
    zero: 0,
    micro_batches: 1,
    dropout: None,
    keep: None,
};

/// Documents of a step.
const DOCUMENTS: usize = 8;

/// What some steps come to.
struct Outcome {
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// By name, put together on the first rank.
    states: Vec<(String, Vec<u8>)>,
    eval: f64,
}

/// Gradients are not clipped, so that no bit depends on the order in which their squares are added
/// up.
fn unclipped() -> Rule {
    let rule = rule();
    Rule { optimizer: OptimizerConfig { clip_norm: None, ..rule.optimizer }, ..rule }
}

impl Job {
    fn ranks(self) -> usize {
        self.pipeline * self.data * self.tensor
    }

    fn artifact(self) -> Arc<Artifact> {
        let Job { family, layers, dtype, pipeline, data, tensor, zero, .. } = self;
        let mut options = options_of(adamw(0.1));
        options.import.dtype = (dtype != DType::F32).then_some(dtype);
        options.kernel_cache = Some(KernelCache::at(&scratch().join("pipeline-kernels")));
        let training = options.training.as_mut().unwrap();
        training.zero = Zero { stage: zero, ranks: u32::try_from(data).unwrap() };
        (training.stages, training.keep) = (pipeline, self.keep);
        (training.tensor, training.dropout) = (u32::try_from(tensor).unwrap(), self.dropout);
        let name = format!("pipeline-{family}-{dtype}-{pipeline}-{data}-{tensor}-{zero}");
        let (path, _) = compile_to(&name, &deep(family, layers), &options);
        Arc::new(Artifact::open(&path).unwrap())
    }

    fn trainer(self, artifact: &Arc<Artifact>, world: &World) -> Result<Trainer, TrainError> {
        let Job { pipeline, data, tensor, zero, .. } = self;
        let mesh = MeshConfig { pipeline, data, tensor, zero, ..MeshConfig::default() };
        let rank = match self.ranks() {
            1 => Rank::alone(),
            _ => Rank::new(world, &mesh)?,
        };
        let device = Device::cpu(std::num::NonZeroUsize::new(1)).unwrap();
        let mut step = TrainStep::load(&Model::load(artifact.clone(), device).unwrap(), &rank)?;
        step.reserve(self.micro_batches)?;
        initialize(&mut step, &deep(self.family, self.layers), 7)?;
        Ok(Trainer::new(step, unclipped(), 0))
    }

    /// A data rank's micro-batches of a step; all of them together do not depend on the mesh.
    fn batches(self, documents: &Documents, number: usize, data_rank: usize) -> Vec<MicroBatch> {
        let each = DOCUMENTS / self.data / self.micro_batches;
        let first = (number - 1) % 5 * DOCUMENTS + data_rank * (DOCUMENTS / self.data);
        let starts = (0..self.micro_batches).map(|i| first + i * each);
        starts.map(|start| documents.batch(start..start + each)).collect()
    }

    fn run<R: Send>(
        self,
        body: impl Fn(&Documents, Trainer) -> Result<R, TrainError> + Sync,
    ) -> Vec<Result<R, TrainError>> {
        let (artifact, documents) = (self.artifact(), Documents::read());
        let mut options = Options::default();
        options.report = Arc::new(|_| ());
        let body = |world: &World| body(&documents, self.trainer(&artifact, world)?);
        run_threads(self.ranks(), &options, body)
    }

    fn advance(
        self,
        trainer: &mut Trainer,
        documents: &Documents,
        number: usize,
    ) -> Result<train::Metrics, TrainError> {
        let data_rank = trainer.step().rank().data_rank();
        trainer.advance(&self.batches(documents, number, data_rank))
    }

    /// Takes steps on every rank, which end with the same.
    fn steps(self, steps: usize) -> Outcome {
        let outcomes = self.run(|documents, mut trainer| {
            let (mut losses, mut norms) = (Vec::new(), Vec::new());
            for number in 1..=steps {
                let metrics = self.advance(&mut trainer, documents, number)?;
                losses.push(metrics.loss);
                norms.push(metrics.grad_norm);
            }
            let data_rank = trainer.step().rank().data_rank();
            let eval = trainer.evaluate(self.batches(documents, 1, data_rank))?.unwrap();
            let step = trainer.step();
            let (planned, touched) = (step.planned()?.total(), step.resident_bytes());
            assert!(touched <= planned, "{touched} bytes of {planned}");
            let mut states = Vec::new();
            let names = step.parameters().iter().map(|p| &p.name);
            for (kind, name) in names.flat_map(|name| ["param", "m", "v"].map(|kind| (kind, name)))
            {
                let name = format!("{kind}.{name}");
                let whole = step.whole_state(&name)?.map(|whole| whole.into_owned());
                states.extend(whole.map(|whole| (name, whole)));
            }
            states.sort();
            Ok(Outcome { losses, norms, states, eval })
        });
        let mut outcomes: Vec<Outcome> =
            outcomes.into_iter().map(|o| o.unwrap_or_else(|e| panic!("{e}"))).collect();
        let first = outcomes.swap_remove(0);
        for other in &outcomes {
            assert_eq!((&other.losses, &other.norms), (&first.losses, &first.norms));
            assert_eq!(other.eval.to_bits(), first.eval.to_bits());
            for (name, state) in &other.states {
                let same = first.states.iter().any(|(of, want)| of == name && want == state);
                assert!(same, "ranks hold different `{name}`");
            }
        }
        first
    }
}

fn check_near(what: &str, got: &[f64], want: &[f64], most: f64) {
    assert_eq!(got.len(), want.len());
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (got - want).abs() / want;
        assert!(off <= most, "{what}: step {}: {got}, not {want}: {off:.1e} off", step + 1);
    }
}

#[test]
fn stages_take_the_steps_of_one_rank_bit_for_bit() {
    for micro_batches in [1, 4] {
        let want = Job { micro_batches, ..ALONE }.steps(20);
        for pipeline in [2, 3, 4] {
            let got = Job { pipeline, micro_batches, ..ALONE }.steps(20);
            let what = format!("{pipeline} stages, {micro_batches} micro-batches");
            assert_eq!(got.losses, want.losses, "{what}");
            assert_eq!(got.eval.to_bits(), want.eval.to_bits(), "{what}");
            assert!(got.states == want.states, "{what}: states differ");
            check_near(&what, &got.norms, &want.norms, 1e-12);
        }
    }
}

#[test]
fn what_is_kept_in_a_stage_changes_no_bit() {
    let want = ALONE.steps(3);
    for keep in [Keep::All, Keep::Costly, Keep::Input] {
        let got = Job { pipeline: 2, keep: Some(keep), ..ALONE }.steps(3);
        assert!(got.losses == want.losses && got.states == want.states, "{keep:?}");
    }
}

/// Sums over data ranks have an order of their own, so results differ in rounding from one rank's.
#[test]
fn stages_and_copies_take_the_steps_of_one_rank() {
    for micro_batches in [1, 4] {
        let want = Job { micro_batches, ..ALONE }.steps(20);
        let of = |pipeline, zero| Job { pipeline, data: 2, zero, micro_batches, ..ALONE }.steps(20);
        let alone = of(1, 0);
        for zero in 0..=3 {
            let got = of(2, zero);
            let what = format!("ZeRO stage {zero}, {micro_batches} micro-batches");
            check_near(&what, &got.losses, &want.losses, 1e-6);
            check_near(&what, &got.norms, &want.norms, 1e-4);
            assert_eq!(got.losses, alone.losses, "{what}");
            assert!(got.states == alone.states, "{what}: states differ");
        }
    }
}

/// Four and eight ranks, all axes at once, with and without dropout, whose masks are of
/// micro-batches and not of ranks.
#[test]
fn every_mesh_takes_the_steps_of_one_rank() {
    for (family, dropout) in [("llama-even", None), ("gpt2-gelu-new", Some(0.1))] {
        let alone = Job { family, layers: 2, dropout, micro_batches: 4, ..ALONE };
        let want = alone.steps(20);
        for (pipeline, data, tensor, zero) in
            [(2, 1, 2, 0), (1, 2, 2, 1), (2, 2, 1, 3), (2, 2, 2, 2), (2, 1, 4, 0), (2, 4, 1, 1)]
        {
            let micro_batches = 4 / data;
            let job = Job { pipeline, data, tensor, zero, micro_batches, ..alone };
            let got = job.steps(20);
            let what = format!("{family}, {pipeline} x {data} x {tensor}, ZeRO stage {zero}");
            check_near(&what, &got.losses, &want.losses, 1e-6);
            check_near(&what, &got.norms, &want.norms, 1e-4);
        }
    }
}

#[test]
fn tied_embeddings_are_one_weight_in_two_stages() {
    let tied = Job { family: "qwen3-mqa-tied", ..ALONE };
    for (pipeline, data, zero, micro_batches) in
        [(2, 1, 0, 1), (3, 1, 0, 4), (2, 2, 2, 2), (2, 2, 3, 1)]
    {
        let want = Job { micro_batches, ..tied }.steps(20);
        let got = Job { pipeline, data, zero, micro_batches, ..tied }.steps(20);
        let what = format!("{pipeline} x {data}, ZeRO stage {zero}, {micro_batches} micro-batches");
        check_near(&what, &got.losses, &want.losses, 1e-6);
        check_near(&what, &got.norms, &want.norms, 1e-4);
        if (data, micro_batches) == (1, 1) {
            assert!(got.states == want.states, "{what}: states differ");
        }
    }
}

#[test]
fn narrow_weights_go_through_stages() {
    for dtype in [DType::Bf16, DType::F16] {
        let want = Job { dtype, micro_batches: 2, ..ALONE }.steps(10);
        let got = Job { dtype, pipeline: 2, micro_batches: 2, ..ALONE }.steps(10);
        assert_eq!(got.losses, want.losses, "{dtype}");
        assert!(got.states == want.states, "{dtype}: states differ");
        let got = Job { dtype, pipeline: 2, data: 2, zero: 2, micro_batches: 2, ..ALONE }.steps(10);
        check_near(&format!("{dtype}"), &got.losses, &want.losses, 2e-3);
    }
}

#[test]
fn a_checkpoint_changes_the_mesh() {
    let dir = scratch().join("pipeline-checkpoints");
    let _ = std::fs::remove_dir_all(&dir);
    let want = ALONE.steps(6).losses;
    let first = Job { pipeline: 2, ..ALONE };
    let saved = Saved { step: 3, position: 3, run: "run".into(), loss_scale: None };
    let ends = first.run(|documents, mut trainer| {
        for number in 1..=3 {
            first.advance(&mut trainer, documents, number)?;
        }
        let mut checkpoints = Checkpoints::new(&dir, 2);
        checkpoints.save(trainer.step(), saved.clone())?;
        checkpoints.finish()
    });
    ends.into_iter().for_each(|end| end.unwrap());
    for (pipeline, data, zero) in [(1, 1, 0), (2, 1, 0), (4, 1, 0), (1, 2, 2), (2, 2, 1)] {
        let job = Job { pipeline, data, zero, ..ALONE };
        let ends = job.run(|documents, trainer| {
            let mut step = trainer.into_step();
            let saved = Checkpoints::new(&dir, 2).load::<u64>(&mut step, "run")?.unwrap();
            let mut trainer = Trainer::new(step, unclipped(), saved.step);
            let losses = (4..=6).map(|n| Ok(job.advance(&mut trainer, documents, n)?.loss));
            losses.collect::<Result<Vec<f64>, TrainError>>()
        });
        let most = if data == 1 { 0.0 } else { 1e-6 };
        for end in ends {
            check_near(&format!("{pipeline} x {data}"), &end.unwrap(), &want[3..], most);
        }
    }
}

#[test]
fn what_is_not_finite_is_named_with_the_rank_of_its_stage() {
    let job = Job { pipeline: 4, micro_batches: 4, ..ALONE };
    let bad = "model.layers.2.mlp.up_proj.weight";
    let ends = job.run(|documents, mut trainer| {
        job.advance(&mut trainer, documents, 1)?;
        let name = format!("param.{bad}");
        if let Some(bytes) = trainer.step().state(&name).unwrap() {
            let mut bytes = bytes.to_vec();
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            assert!(trainer.step_mut().set_state(&name, &bytes).unwrap());
        }
        job.advance(&mut trainer, documents, 2)?;
        Ok(())
    });
    for end in ends {
        let error = end.unwrap_err().to_string();
        let want = format!(
            "step 2: what comes out of `model.layers.2` on rank 2 is not finite, and its parameter \
             `{bad}` is not"
        );
        assert!(error.starts_with(&want), "{error}");
    }
}

#[test]
fn a_stage_holds_its_own_layers_alone() {
    let held = |job: Job| {
        let sizes = job.run(|_, trainer| {
            let step = trainer.step();
            let names = step.states().map(|port| port.name.to_string()).collect::<Vec<_>>();
            let bytes = step.state_bytes();
            let bytes: u64 =
                bytes.filter(|(name, _)| names.iter().any(|n| n == name)).map(|(_, n)| n).sum();
            Ok((bytes, step.planned()?.state_bytes, names))
        });
        sizes.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let [whole] = &held(ALONE)[..] else { panic!("one rank") };
    for micro_batches in [1, 8] {
        let stages = held(Job { pipeline: 4, micro_batches, ..ALONE });
        assert_eq!(stages.iter().map(|(bytes, ..)| bytes).sum::<u64>(), whole.0);
        for (stage, (_, _, names)) in stages.iter().enumerate() {
            let layers = (0..4)
                .filter(|layer| names.iter().any(|n| n.contains(&format!("layers.{layer}."))));
            assert_eq!(layers.collect::<Vec<_>>(), [stage]);
        }
        // What is kept of micro-batches: of four, three, two and one at most.
        let kept: Vec<u64> = stages.iter().map(|(bytes, planned, _)| planned - bytes).collect();
        let is_less = |a: &u64, b: &u64| if micro_batches > 1 { a > b } else { true };
        assert!(kept.is_sorted_by(is_less), "{kept:?}");
    }
}

#[test]
fn too_few_layers_are_refused_with_both_numbers() {
    let mut options = options_of(adamw(0.1));
    options.training.as_mut().unwrap().stages = 3;
    let out = scratch().join("pipeline-none.brolly");
    let error = driver::compile(&data("families/llama-gqa3"), &out, &options, &driver::Silent);
    let told = error.unwrap_err().to_string();
    assert!(told.contains("has 2 layers, which 3 stages cannot share"), "{told}");
}
