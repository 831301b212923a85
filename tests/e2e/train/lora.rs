//! Adapters against PEFT, against themselves, and as what is made of them.

use std::{collections::BTreeMap, path::Path};

use driver::{CompileError, Lora, check};
use ir::DType;
use safetensors::SafeTensors;
use train::{LoraConfig, LoraTargets, export_lora, export_merged, initialize_lora};

use super::{precision::follow, *};

/// What `tests/reference/lora.py` wrote of a case.
#[derive(Deserialize)]
struct Reference {
    rank: usize,
    alpha: f64,
    rslora: bool,
    targets: Option<Vec<String>>,
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    factors: Vec<(String, f64, Vec<f64>)>,
    bf16: Option<Vec<f64>>,
}

impl Reference {
    fn config(&self) -> LoraConfig {
        let targets = match &self.targets {
            None => LoraTargets::AllLinear,
            Some(names) => LoraTargets::Named(names.clone()),
        };
        LoraConfig { rank: self.rank, alpha: self.alpha, rslora: self.rslora, targets }
    }
}

fn references() -> BTreeMap<String, Reference> {
    let text = std::fs::read(data("training/lora.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn options_with(config: &LoraConfig) -> CompileOptions {
    let targets = match &config.targets {
        LoraTargets::AllLinear => None,
        LoraTargets::Named(names) => Some(names.clone()),
    };
    let lora = Lora { rank: config.rank as u64, scale: config.scale(), targets };
    let mut options = options_of(adamw(0.1));
    options.training.as_mut().unwrap().lora = Some(lora);
    options
}

/// A step that trains adapters, which start as in the reference.
fn load_adapted(
    case: &str,
    options: &CompileOptions,
    reference: &Reference,
    threads: usize,
) -> TrainStep {
    let dtype = options.import.dtype.map_or(String::new(), |dtype| format!("-{dtype}"));
    let mut step = load_with(&format!("lora-{case}{dtype}"), case, options, threads);
    let mut parameters = step.parameters().to_vec();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = parameters.iter().map(|p| &*p.name).collect();
    let want: Vec<&str> = reference.factors.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, want, "{case}: what is trained");
    for (tensor, p) in parameters.iter().enumerate() {
        assert_eq!(p.dtype, DType::F32);
        let start = |at: usize| ((37 * at + 11 * tensor) % 101) as f32 - 50.0;
        let is_down = p.name.contains(".lora_A.");
        let values = (0..p.shape.iter().product::<usize>()).map(|at| start(at) / 256.0);
        let values: Vec<f32> = values.map(|x| if is_down { x } else { 0.0 }).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(step.set_state(&format!("param.{}", p.name), &bytes).unwrap());
    }
    step
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
}

#[test]
fn a_hundred_steps_of_adapters_follow_peft() {
    let documents = Documents::read();
    let all = references();
    assert_eq!(all.len(), 3);
    for (case, want) in all {
        let options = options_with(&want.config());
        let mut trainer = Trainer::new(load_adapted(&case, &options, &want, 2), rule(), 0);
        let first = batches(&documents, 1);
        let mut base = Trainer::new(load(&case, 2), rule(), 0);
        let [mut worst_loss, mut worst_norm] = [0.0f64; 2];
        for number in 1..=STEPS {
            let metrics = trainer.advance(&batches(&documents, number)).unwrap();
            if number == 1 {
                let plain = base.evaluate(first.clone()).unwrap().unwrap();
                let off = (metrics.loss - plain).abs() / plain;
                assert!(off < 1e-6, "{case}: begins at {}, the model at {plain}", metrics.loss);
            }
            let off = |got: f64, want: f64| (got - want).abs() / want.abs();
            worst_loss = worst_loss.max(off(metrics.loss, want.loss[number - 1]));
            worst_norm = worst_norm.max(off(metrics.grad_norm, want.grad_norm[number - 1]));
            assert!(worst_loss < 1e-4, "{case}: step {number}: loss {worst_loss:.1e} off");
            assert!(worst_norm < 1e-3, "{case}: step {number}: norm {worst_norm:.1e} off");
        }
        for (name, norm, first) in &want.factors {
            let values = floats(&trainer.step().state(&format!("param.{name}")).unwrap().unwrap());
            let got = values.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((got - norm).abs() < 1e-3 * norm, "{case}: {name}: norm {got}, not {norm}");
            for (got, want) in values.iter().zip(first) {
                assert!((got - want).abs() < 2e-3, "{case}: {name}: {got}, not {want}");
            }
        }
        println!("{case}: loss {worst_loss:.1e} off, norm {worst_norm:.1e} off");
        exported(&case, &want.config(), &mut trainer);
        if let Some(losses) = &want.bf16 {
            let mut options = options_with(&want.config());
            options.import.dtype = Some(DType::Bf16);
            let mut trainer = Trainer::new(load_adapted(&case, &options, &want, 2), rule(), 0);
            follow(&mut trainer, &documents, losses, 1e-2, &format!("{case} in bf16"));
        }
    }
}

/// What becomes of adapters: a folder of PEFT's, and a model that scores as they were trained.
fn exported(case: &str, config: &LoraConfig, trainer: &mut Trainer) {
    let model = data(&format!("families/{case}"));
    let [adapters, merged] =
        ["adapters", "merged"].map(|kind| scratch().join(format!("lora-{case}-{kind}")));
    export_lora(trainer.step(), config, &model, &adapters).unwrap();
    let text = std::fs::read(adapters.join("adapter_config.json")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&written["peft_type"], &written["r"]), (&"LORA".into(), &config.rank.into()));
    assert_eq!(written["lora_alpha"].as_f64(), Some(config.alpha));
    assert_eq!(written["fan_in_fan_out"], case.starts_with("gpt2"));
    if config.targets == LoraTargets::AllLinear {
        assert_eq!(written["target_modules"], serde_json::json!(["c_attn", "c_fc", "c_proj"]));
    }
    let bytes = std::fs::read(adapters.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let names = trainer.step().parameters().iter().map(|p| format!("base_model.model.{}", p.name));
    let names: Vec<String> = names.collect();
    assert_eq!(tensors.len(), names.len());
    assert!(names.iter().all(|name| tensors.tensor(name).is_ok()));

    export_merged(trainer.step(), &model, &merged).unwrap();
    let (path, _) = compile_to(&format!("lora-{case}-merged"), &merged, &options_of_serving());
    let tokens: Vec<u32> = (1..20).collect();
    let scores = open(&path, 2).score(&tokens).unwrap();
    let ids: Vec<i32> = (1..20).collect();
    for (i, score) in scores.iter().enumerate().skip(1) {
        let mut targets = vec![-100; ids.len()];
        targets[i - 1] = ids[i];
        let mut batch = MicroBatch::default();
        batch.push(&ids, &targets);
        let loss = trainer.evaluate([batch]).unwrap().unwrap();
        let score = f64::from(score.unwrap());
        assert!((loss + score).abs() < 1e-4 * loss.max(1.0), "{case}: {score}, trained {loss}");
    }
}

#[test]
fn a_run_of_adapters_goes_on_bit_for_bit() {
    let documents = Documents::read();
    let case = "llama-gqa3";
    let config = references().remove(case).unwrap().config();
    let options = options_with(&config);
    let fresh = |threads| {
        let mut step = load_with("lora-resumed", case, &options, threads);
        initialize_lora(&mut step, 7).unwrap();
        step
    };
    let step = fresh(2);
    for p in step.parameters() {
        let values = floats(&step.state(&format!("param.{}", p.name)).unwrap().unwrap());
        let bound =
            if p.name.contains(".lora_A.") { 1.0 / (p.shape[1] as f64).sqrt() } else { 0.0 };
        let most = values.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        assert!(most <= bound && most >= 0.9 * bound, "{}: {most} of {bound}", p.name);
    }
    let frozen = step.frozen().len();
    assert!(frozen > step.parameters().len(), "{frozen}");
    let loss = |trainer: &mut Trainer, n: usize| {
        trainer.advance(&batches(&documents, n)).unwrap().loss.to_bits()
    };
    let mut whole = Trainer::new(step, rule(), 0);
    let want: Vec<u64> = (1..=5).map(|n| loss(&mut whole, n)).collect();
    let (planned, touched) = (whole.step().planned().unwrap(), whole.step().resident_bytes());
    assert!(touched <= planned.total(), "{touched} bytes of {planned:?}");

    let dir = scratch().join("lora-checkpoints");
    let mut first = Trainer::new(fresh(1), rule(), 0);
    assert_eq!([1, 2].map(|n| loss(&mut first, n)), want[..2]);
    let mut checkpoints = Checkpoints::new(&dir, 1);
    let saved = Saved { step: 2, position: 2usize, run: "run".into(), loss_scale: None };
    checkpoints.save(first.step(), saved).unwrap();
    checkpoints.finish().unwrap();
    let states = std::fs::read(dir.join("step-00000002/states.safetensors")).unwrap();
    let states = SafeTensors::deserialize(&states).unwrap();
    assert_eq!(states.len(), 3 * whole.step().parameters().len(), "adapters and their moments");
    assert!(states.names().iter().all(|name| name.contains(".lora_")));

    let mut step = load_with("lora-resumed", case, &options, 2);
    checkpoints.load::<usize>(&mut step, "run").unwrap().unwrap();
    let mut second = Trainer::new(step, rule(), 2);
    assert_eq!([3, 4, 5].map(|n| loss(&mut second, n)), want[2..]);
}

#[test]
fn merged_weights_keep_their_types() {
    let case = data("families/llama-bf16");
    let lora = LoraConfig { rank: 2, alpha: 2.0, rslora: false, targets: LoraTargets::AllLinear };
    let step = load_with("lora-bf16", "llama-bf16", &options_with(&lora), 2);
    let merged = scratch().join("lora-bf16-merged");
    export_merged(&step, &case, &merged).unwrap();
    // Adapters of zeros change nothing.
    let read = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    let (got, want) = (read(&merged), read(&case));
    let [got, want] = [&got, &want].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(got.len(), want.len());
    for (name, tensor) in want.iter() {
        assert!(got.tensor(name).unwrap() == tensor, "{name}");
    }
}

#[test]
fn targets_that_name_nothing_are_told_with_what_there_is() {
    let targets = ["qproj", "v_proj", "embed_tokens", "norm"].map(str::to_owned).to_vec();
    let targets = LoraTargets::Named(targets);
    let lora = LoraConfig { rank: 2, alpha: 2.0, rslora: false, targets };
    let error = check(&data("families/llama-gqa3"), &options_with(&lora)).unwrap_err();
    let CompileError::Targets(told) = &error else { panic!("{error}") };
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(
        told[0],
        "`lora.targets` has \"qproj\", and no product's matrix ends in that name: there are \
         down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj; or write \
         \"all-linear\""
    );
    let mut options = options_with(&LoraConfig { targets: LoraTargets::AllLinear, ..lora });
    options.training.as_mut().unwrap().groups.push(Group {
        pattern: regex::Regex::new("1.*lora_A").unwrap(),
        weight_decay: None,
        is_frozen: true,
    });
    let error = check(&data("families/llama-gqa3"), &options).unwrap_err().to_string();
    assert!(error.contains("`groups` freezes `model.layers.1."), "{error}");
}
