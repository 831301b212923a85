//! Narrow types, and every optimiser, against PyTorch.

use std::collections::BTreeMap;

use ir::DType;
use train::LossScale;

use super::*;

/// The step of a model whose matrices are of that type.
fn load_narrow(case: &str, dtype: DType) -> TrainStep {
    let mut options = options_of(adamw(0.1));
    options.import.dtype = Some(dtype);
    load_with(&format!("train-{case}-{dtype}"), case, &options, 2)
}

/// Losses of 100 steps beside those of PyTorch; returns how far the worst is off.
pub(super) fn follow(
    trainer: &mut Trainer,
    documents: &Documents,
    want: &[f64],
    most: f64,
    what: &str,
) {
    let mut off = Vec::new();
    for (number, want) in (1..=STEPS).zip(want) {
        let loss = trainer.advance(&batches(documents, number)).unwrap().loss;
        off.push((loss - want) / want);
        let worst = off[number - 1].abs();
        assert!(worst < most, "{what}: step {number}: loss {loss}, not {want}: {worst:.1e} off");
    }
    let mean = |off: &[f64]| off.iter().sum::<f64>() / off.len() as f64;
    let (all, last) = (mean(&off), mean(&off[STEPS * 3 / 4..]));
    assert!(all.abs() < most / 5.0 && last.abs() < most / 3.0, "{what}: a trend: {all}, {last}");
    println!("{what}: {:.1e} off", off.iter().fold(0.0f64, |worst, x| worst.max(x.abs())));
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Losses(BTreeMap<String, Vec<f64>>);

fn losses(file: &str) -> BTreeMap<String, Vec<f64>> {
    let text = std::fs::read(data(&format!("training/{file}"))).unwrap();
    serde_json::from_slice::<Losses>(&text).unwrap().0
}

#[test]
fn bf16_with_f32_masters_follows_pytorch() {
    let documents = Documents::read();
    let all = losses("bf16.json");
    assert_eq!(all.len(), 4);
    for (case, want) in all {
        let mut trainer = Trainer::new(load_narrow(&case, DType::Bf16), rule(), 0);
        follow(&mut trainer, &documents, &want, 1e-2, &format!("{case} in bf16"));
        let ports = trainer.step().states().map(|port| port.ty.dtype);
        assert!(ports.into_iter().all(|dtype| dtype == DType::F32), "{case}: states are f32");
    }
}

#[test]
fn what_a_narrow_model_scores_is_what_it_was_trained_with() {
    let documents = Documents::read();
    let (case, dtype) = ("llama-gqa3", DType::Bf16);
    let mut trainer = Trainer::new(load_narrow(case, dtype), rule(), 0);
    trainer.advance(&batches(&documents, 1)).unwrap();
    let folder = scratch().join("train-narrow");
    export(trainer.step(), &data(&format!("families/{case}")), &folder).unwrap();
    let mut options = options_of_serving();
    options.import.dtype = Some(dtype);
    let (path, _) = compile_to("trained-narrow", &folder, &options);
    let mut session = open(&path, 2);
    let tokens: Vec<u32> = (1..20).collect();
    let scores = session.score(&tokens).unwrap();
    let want: f32 = scores.iter().flatten().map(|x| -x).sum();
    let mut batch = MicroBatch::default();
    let tokens: Vec<i32> = (1..20).collect();
    let targets: Vec<i32> = tokens[1..].iter().copied().chain([-100]).collect();
    batch.push(&tokens, &targets);
    let got = trainer.evaluate([batch]).unwrap().unwrap() * 18.0;
    assert!((got - f64::from(want)).abs() < 1e-5 * got, "{got}, not {want}");
}

#[test]
fn f16_skips_what_is_not_finite_and_goes_on_with_the_same_bits() {
    let documents = Documents::read();
    let case = "llama-gqa3";
    let scaled = |scale| Some(LossScale { scale, ..LossScale::default() });
    let reference = losses("bf16.json").remove(case).unwrap();
    // A scale at which gradients overflow: steps are skipped until they do not.
    let mut whole = Trainer::new(load_narrow(case, DType::F16), rule(), 0);
    whole = whole.with_loss_scale(scaled(2f32.powi(30)));
    let mut metrics = Vec::new();
    for step in 1..=40 {
        let before = whole.step().state("param.lm_head.weight").unwrap().unwrap().to_vec();
        let now = whole.advance(&batches(&documents, step)).unwrap();
        let is_same = whole.step().state("param.lm_head.weight").unwrap().unwrap() == before;
        assert_eq!(now.skipped.is_some(), is_same, "step {step}");
        metrics.push(now);
    }
    let skipped = metrics.iter().filter(|m| m.skipped.is_some()).count();
    assert!((3..20).contains(&skipped), "{skipped} skipped");
    assert!(metrics[39].loss < 0.95 * metrics[0].loss && metrics[39].grad_norm < 100.0);
    let state = whole.loss_scale().unwrap();
    assert_eq!(state.skipped, skipped as u64);
    assert_eq!(state.scale, 2f32.powi(30 - i32::try_from(skipped).unwrap()));

    // At PyTorch's scale nothing overflows, and losses are those of bf16 but for rounding.
    let fresh =
        || Trainer::new(load_narrow(case, DType::F16), rule(), 0).with_loss_scale(scaled(65536.0));
    let mut trainer = fresh();
    follow(&mut trainer, &documents, &reference, 1e-2, "llama in f16");
    assert_eq!(trainer.loss_scale().unwrap().good_steps, STEPS as u64);

    // A run that goes on has the scaler's state too.
    let dir = scratch().join("train-f16");
    let mut first = Trainer::new(load_narrow(case, DType::F16), rule(), 0);
    first = first.with_loss_scale(scaled(2f32.powi(30)));
    for step in 1..=skipped + 2 {
        first.advance(&batches(&documents, step)).unwrap();
    }
    let mut checkpoints = Checkpoints::new(&dir, 1);
    let (step, loss_scale) = (first.done(), first.loss_scale());
    let saved = Saved { step, position: 0, run: "run".into(), loss_scale };
    checkpoints.save(first.step(), saved).unwrap();
    checkpoints.finish().unwrap();
    let mut step = load_narrow(case, DType::F16);
    let saved = checkpoints.load::<usize>(&mut step, "run").unwrap().unwrap();
    let mut second = Trainer::new(step, rule(), saved.step).with_loss_scale(saved.loss_scale);
    for step in skipped + 3..=40 {
        let now = second.advance(&batches(&documents, step)).unwrap();
        assert_eq!(now.loss.to_bits(), metrics[step - 1].loss.to_bits(), "step {step}");
    }
    assert_eq!(second.loss_scale(), whole.loss_scale());
}

#[test]
fn every_rule_follows_pytorch_through_compiled_code() {
    let documents = Documents::read();
    let case = "llama-gqa3";
    let rules = losses("rules.json");
    assert_eq!(rules.len(), 5);
    for (name, want) in rules {
        let weight_decay = 0.1;
        let (update, optimizer) = match &*name {
            "adamw" => (adamw(0.1), Optimizer::Adamw { betas: BETAS, eps: 1e-8 }),
            "lion" => {
                let betas = [0.9, 0.99];
                (Update::Lion { betas, weight_decay }, Optimizer::Lion { betas })
            }
            "sgd" => {
                let (momentum, nesterov) = (0.9, true);
                let update = Update::Sgd { momentum, nesterov, weight_decay };
                (update, Optimizer::Sgd { momentum, nesterov })
            }
            "adafactor" => {
                let (eps, clip_threshold) = (1e-3, 1.0);
                let update = Update::Adafactor { eps, clip_threshold, weight_decay };
                (update, Optimizer::Adafactor { beta2_decay: -0.8, eps, clip_threshold })
            }
            _ => {
                let (momentum, nesterov, ns_steps) = (0.95, true, 5);
                let update = Update::Muon { momentum, nesterov, ns_steps, weight_decay };
                let (adamw_lr, betas, eps) = (1e-3, BETAS, 1e-8);
                let rule = Optimizer::Muon { momentum, nesterov, ns_steps, adamw_lr, betas, eps };
                (update, rule)
            }
        };
        let mut options = options_of(update);
        if let (Some(training), "muon") = (&mut options.training, &*name) {
            training.others = Some(adamw(0.1));
        }
        let step = load_with(&format!("train-{name}"), case, &options, 2);
        let mut rule = rule();
        rule.optimizer.rule = optimizer;
        rule.group_lrs = if name == "muon" { vec![1e-3] } else { vec![] };
        let mut trainer = Trainer::new(step, rule, 0);
        follow(&mut trainer, &documents, &want, 1e-4, &name);
    }
}
