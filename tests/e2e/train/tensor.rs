//! Ranks that share products: against one rank, against each other, and what they cannot share.

use super::{
    ranks::{Job, outcome},
    *,
};
use exec::collectives::{Options, World, run_threads};
use ir::DType;

/// Keys of a model's configuration, and other values for them.
type Changes = [(&'static str, u64); 2];

/// Models whose extents ranks divide: name, the case that it is like, and what differs.
pub(super) const CONFIGS: [(&str, &str, Changes); 2] = [
    ("llama-even", "llama-gqa3", [("num_attention_heads", 8), ("intermediate_size", 84)]),
    ("qwen3-even", "qwen3-mqa-tied", [("num_attention_heads", 4), ("intermediate_size", 76)]),
];

/// A folder with the configuration of a case, changed.
pub(super) fn configured(name: &str, of: &str, changes: &Changes) -> PathBuf {
    let text = std::fs::read(data(&format!("families/{of}/config.json"))).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes {
        config[*key] = (*value).into();
    }
    configuration(name, &config)
}

/// Losses of one rank.
fn alone(case: &str, steps: usize) -> Vec<f64> {
    let documents = Documents::read();
    let mut trainer = Trainer::new(load(case, 1), rule(), 0);
    (1..=steps).map(|n| trainer.advance(&batches(&documents, n)).unwrap().loss).collect()
}

fn assert_follows(job: Job, want: &[f64], most: f64) {
    let got = job.steps(1..=want.len());
    assert!(got.touched <= got.planned, "{job:?}: {} of {}", got.touched, got.planned);
    for (step, (want, got)) in want.iter().zip(&got.losses).enumerate() {
        let off = (f64::from_bits(*got) - want).abs() / want;
        assert!(off < most, "{job:?}, step {}: {off:.1e} off", step + 1);
    }
}

/// Heads of their own, one matrix of queries, keys and values with biases, and norms of each head
/// with one head of keys and values for all.
#[test]
fn ranks_that_share_products_take_the_steps_of_one() {
    for (case, meshes) in [
        ("llama-even", &[(1, 2, 0), (1, 4, 0), (2, 2, 2)][..]),
        ("gpt2-gelu-new", &[(1, 2, 0), (2, 4, 3)]),
        ("qwen3-even", &[(1, 2, 0), (2, 2, 1)]),
    ] {
        let want = alone(case, 20);
        for (ranks, tensor, stage) in meshes {
            let job = Job { tensor: *tensor, ..Job::of(case, *ranks, *stage) };
            assert_follows(job, &want, 1e-6);
        }
    }
}

/// Which stage of ZeRO does not matter here either.
#[test]
fn stages_of_zero_have_the_same_bits_over_shared_products() {
    for dtype in [DType::F32, DType::Bf16] {
        let job = |stage| Job { dtype, tensor: 2, ..Job::of("gpt2-gelu-new", 2, stage) };
        let want = job(0).steps(1..=4);
        for stage in 1..=3 {
            let got = job(stage).steps(1..=4);
            assert_eq!((&got.losses, &got.norms), (&want.losses, &want.norms), "{dtype}, {stage}");
            assert!(got.states == want.states, "{dtype}, stage {stage}: parameters differ");
        }
    }
}

/// A checkpoint of shared products is one of whole tensors.
#[test]
fn a_checkpoint_of_shared_products_is_read_by_one_rank_and_by_others() {
    let case = "gpt2-gelu-new";
    let documents = Documents::read();
    let job = Job { tensor: 2, ..Job::of(case, 1, 0) };
    let want = job.steps(1..=5);
    let dir = scratch().join("tensor-checkpoints");
    let saved = job.run(|_, mut trainer| {
        for number in 1..=3 {
            trainer.advance(&job.batches(&documents, number, 0))?;
        }
        let mut checkpoints = Checkpoints::new(&dir, 2);
        let saved = Saved { step: 3, position: 3, run: "run".into(), loss_scale: None };
        checkpoints.save(trainer.step(), saved)?;
        checkpoints.finish()
    });
    saved.into_iter().for_each(|end| end.unwrap());
    for (ranks, tensor, stage) in [(1, 1, 0), (1, 2, 0), (1, 4, 0), (2, 1, 3), (2, 2, 2)] {
        let job = Job { tensor, ..Job::of(case, ranks, stage) };
        let artifact = job.model();
        let ends = run_threads(ranks * tensor, &Options::default(), |world: &World| {
            let mut step = job.trainer(&artifact, world)?.into_step();
            let saved = Checkpoints::new(&dir, 2).load::<u64>(&mut step, "run")?.unwrap();
            let rank = step.rank().data_rank();
            let mut trainer = Trainer::new(step, rule(), saved.step);
            let mut losses = Vec::new();
            for number in 4..=5 {
                let metrics = trainer.advance(&job.batches(&documents, number, rank))?;
                losses.push(metrics.loss.to_bits());
            }
            Ok::<_, TrainError>(outcome(&trainer, losses, vec![]))
        });
        for end in ends {
            let got = end.unwrap();
            let is_same = (ranks, tensor) == (1, 2);
            for (got, want) in got.losses.iter().zip(&want.losses[3..]) {
                let [got, want] = [*got, *want].map(f64::from_bits);
                let off = (got - want).abs() / want;
                assert!(off <= if is_same { 0.0 } else { 1e-6 }, "{job:?}: {off:.1e} off");
            }
            assert!(!is_same || got.states == want.states, "parameters differ");
        }
    }
}

/// Parameters, gradients and optimiser states of a matrix that is cut, and of what is whole.
#[test]
fn a_rank_holds_its_part_of_what_is_cut() {
    let job = Job { tensor: 2, ..Job::of("llama-even", 1, 0) };
    let ends = job.run(|_, trainer| {
        let step = trainer.step();
        let size = |name: &str| step.state(name).unwrap().unwrap().len();
        let whole = |name: &str| step.whole_state(name).unwrap().unwrap().len();
        for kind in ["param", "grad", "m", "v"] {
            for (weight, parts) in [
                ("model.layers.0.self_attn.q_proj.weight", 2),
                ("model.layers.1.self_attn.o_proj.weight", 2),
                ("model.layers.1.mlp.down_proj.weight", 2),
                ("model.layers.1.input_layernorm.weight", 1),
                ("lm_head.weight", 1),
            ] {
                let name = format!("{kind}.{weight}");
                if kind != "grad" {
                    assert_eq!(whole(&name), parts * size(&name), "{name}");
                }
            }
        }
        Ok(())
    });
    ends.into_iter().for_each(|end| end.unwrap());
}

#[test]
fn what_cannot_be_shared_is_told() {
    let mut options =
        options_of(Update::Muon { momentum: 0.95, nesterov: true, ns_steps: 5, weight_decay: 0.0 });
    options.training.as_mut().unwrap().tensor = 3;
    let out = scratch().join("tensor-refused.brolly");
    let folder = data("families/gpt2-gelu-new");
    let told = |options: &CompileOptions| {
        driver::compile(&folder, &out, options, &driver::Silent).unwrap_err().to_string()
    };
    let error = told(&options);
    assert!(error.contains("`tensor = 3` does not divide its 4 heads"), "{error}");
    options.training.as_mut().unwrap().tensor = 2;
    let error = told(&options);
    assert!(error.contains("needs all of it") && error.contains("c_attn"), "{error}");
    let mut options = options_of(adamw(0.1));
    let training = options.training.as_mut().unwrap();
    let pattern = regex::Regex::new("h.1.mlp").unwrap();
    training.groups = vec![Group { pattern, weight_decay: None, is_frozen: true }];
    training.tensor = 2;
    let error = told(&options);
    assert!(error.contains("h.1.mlp.c_fc.weight") && error.contains("is frozen"), "{error}");
}
