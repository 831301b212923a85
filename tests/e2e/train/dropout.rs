//! Dropout: what it changes, what it must not, and that it can be repeated.

use driver::{Keep, KernelCache};
use exec::collectives::{Options, World, run_threads};
use train::MeshConfig;

use super::*;

const P: f64 = 0.2;

fn dropping(dropout: Option<f64>, keep: Option<Keep>) -> CompileOptions {
    let mut options = options_of(adamw(0.1));
    options.kernel_cache = Some(KernelCache::at(&scratch().join("dropout-kernels")));
    let training = options.training.as_mut().unwrap();
    (training.dropout, training.keep) = (dropout, keep);
    options
}

fn trainer(case: &str, dropout: Option<f64>, threads: usize) -> Trainer {
    let name = format!("dropout-{case}-{}", dropout.is_some());
    let step = load_with(&name, case, &dropping(dropout, Some(Keep::All)), threads);
    Trainer::new(step, rule(), 0)
}

fn losses(trainer: &mut Trainer, steps: std::ops::RangeInclusive<usize>) -> Vec<u64> {
    let documents = Documents::read();
    let loss = |n| trainer.advance(&batches(&documents, n)).unwrap().loss.to_bits();
    steps.map(loss).collect()
}

fn states(trainer: &Trainer) -> Vec<Vec<u8>> {
    let step = trainer.step();
    step.states().map(|port| step.state(&port.name).unwrap().unwrap().to_vec()).collect()
}

#[test]
fn what_is_dropped_follows_from_seed_and_step() {
    let documents = Documents::read();
    for case in ["llama-gqa3", "gpt2-gelu-new", "qwen3-mqa-tied", "mistral-window7"] {
        let mut plain = trainer(case, None, 2);
        let mut whole = trainer(case, Some(P), 2).with_seed(7);
        // Evaluation drops nothing.
        let held_out = || batches(&documents, 9);
        let [want, got] =
            [&mut plain, &mut whole].map(|t| t.evaluate(held_out()).unwrap().unwrap());
        assert_eq!(got.to_bits(), want.to_bits(), "{case}: {got}, not {want}");

        let want = losses(&mut whole, 1..=6);
        let undropped = losses(&mut plain, 1..=1)[0];
        assert_ne!(want[0], undropped, "{case}");
        let [dropped, undropped] = [want[0], undropped].map(f64::from_bits);
        assert!((dropped - undropped).abs() < 0.5 * undropped, "{case}: {dropped}, {undropped}");
        let other = losses(&mut trainer(case, Some(P), 2).with_seed(8), 1..=1);
        assert_ne!(want[0], other[0], "{case}: another seed");

        // One thread, and a checkpoint in between.
        let dir = scratch().join(format!("dropout-{case}-checkpoints"));
        let mut first = trainer(case, Some(P), 1).with_seed(7);
        assert_eq!(losses(&mut first, 1..=3), want[..3], "{case}");
        let mut checkpoints = Checkpoints::new(&dir, 1);
        let saved = Saved { step: 3, position: 3, run: "run".into(), loss_scale: None };
        checkpoints.save(first.step(), saved).unwrap();
        checkpoints.finish().unwrap();
        let mut step = trainer(case, Some(P), 2).into_step();
        let saved = checkpoints.load::<usize>(&mut step, "run").unwrap().unwrap();
        let mut second = Trainer::new(step, rule(), saved.step).with_seed(7);
        assert_eq!(losses(&mut second, 4..=6), want[3..], "{case}");
        assert!(states(&second) == states(&whole), "{case}: states differ");
    }
}

/// Masks are computed again in the backward, and nothing is kept for them.
#[test]
fn what_is_kept_changes_no_bit_and_holds_no_mask() {
    for case in ["llama-gqa3", "gpt2-gelu-new"] {
        let run = |dropout, keep| {
            let options = dropping(dropout, Some(keep));
            let step = load_with(&format!("dropout-kept-{case}"), case, &options, 2);
            let mut trainer = Trainer::new(step, rule(), 0).with_seed(3);
            let losses = losses(&mut trainer, 1..=2);
            let planned = trainer.step().planned().unwrap();
            assert!(trainer.step().resident_bytes() <= planned.total());
            (losses, states(&trainer), planned.arena_bytes)
        };
        let all = run(Some(P), Keep::All);
        for keep in [Keep::Costly, Keep::Input] {
            let other = run(Some(P), keep);
            assert_eq!(other.0, all.0, "{case}");
            assert!(other.1 == all.1, "{case}: states differ");
            assert!(other.2 < all.2, "{case}: {} bytes, all of it {}", other.2, all.2);
        }
        let plain = run(None, Keep::All);
        println!("{case}: arenas of {} bytes, {} without dropout", all.2, plain.2);
    }
}

#[test]
fn the_loss_falls_in_spite_of_it() {
    let documents = Documents::read();
    let mut trainer = trainer("llama-gqa3", Some(P), 2);
    // The same documents again and again.
    let mut loss = |_: usize| trainer.advance(&batches(&documents, 1)).unwrap().loss;
    let losses: Vec<f64> = (1..=60).map(&mut loss).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (begin, end) = (mean(&losses[..5]), mean(&losses[55..]));
    assert!(end < 0.8 * begin, "from {begin} to {end}");
    // What is learned is there when nothing is dropped.
    let evaluated = trainer.evaluate(batches(&documents, 1)).unwrap().unwrap();
    assert!(evaluated < end, "{evaluated}, with dropout {end}");
}

/// Adapters are dropped with the products that they are added to.
#[test]
fn adapters_train_with_it() {
    let lora = driver::Lora { rank: 4, scale: 2.0, targets: None };
    let mut options = dropping(Some(P), None);
    options.training.as_mut().unwrap().lora = Some(lora.clone());
    let begin = |name: &str, options: &CompileOptions| {
        let mut step = load_with(name, "llama-gqa3", options, 2);
        train::initialize_lora(&mut step, 5).unwrap();
        Trainer::new(step, rule(), 0)
    };
    let mut dropped = begin("dropout-lora", &options);
    options.training.as_mut().unwrap().dropout = None;
    let mut plain = begin("dropout-lora-plain", &options);
    let documents = Documents::read();
    let evaluated = [&mut dropped, &mut plain]
        .map(|t| t.evaluate(batches(&documents, 2)).unwrap().unwrap().to_bits());
    assert_eq!(evaluated[0], evaluated[1]);
    assert_ne!(losses(&mut dropped, 1..=2), losses(&mut plain, 1..=2));
}

/// A micro-batch drops the same on any mesh and at any stage of ZeRO.
#[test]
fn ranks_drop_what_one_does() {
    let case = "llama-gqa3";
    let documents = Documents::read();
    let micro_batch = |number: usize, i: usize| {
        let first = (number - 1) * GRAD_ACCUM * MICRO_BATCH + 2 * i;
        documents.batch(first..first + 2)
    };
    let mut alone = trainer(case, Some(P), 1);
    let step = |n: usize| (0..4).map(|i| micro_batch(n, i)).collect::<Vec<_>>();
    let want: Vec<f64> = (1..=5).map(|n| alone.advance(&step(n)).unwrap().loss).collect();
    let mut bits = Vec::new();
    for stage in [0, 2] {
        let mut options = dropping(Some(P), None);
        options.training.as_mut().unwrap().zero = Zero { stage, ranks: 2 };
        let folder = data(&format!("families/{case}"));
        let (path, _) = compile_to(&format!("dropout-ranks-{stage}"), &folder, &options);
        let artifact = Arc::new(Artifact::open(&path).unwrap());
        let ends = run_threads(2, &Options::default(), |world: &World| {
            let mesh = MeshConfig { data: 2, zero: stage, ..MeshConfig::default() };
            let device = Device::cpu(std::num::NonZeroUsize::new(1)).unwrap();
            let model = Model::load(artifact.clone(), device).unwrap();
            let mut step = TrainStep::load(&model, &Rank::new(world, &mesh)?)?;
            load_pretrained(&mut step, &folder)?;
            let mut trainer = Trainer::new(step, rule(), 0);
            let own = |n: usize| [0, 1].map(|i| micro_batch(n, 2 * world.rank() + i));
            let losses = (1..=5).map(|n| Ok(trainer.advance(&own(n))?.loss));
            losses.collect::<Result<Vec<f64>, TrainError>>()
        });
        for end in ends {
            let got = end.unwrap();
            for (got, want) in got.iter().zip(&want) {
                let off = (got - want).abs() / want;
                assert!(off < 1e-6, "stage {stage}: {got}, not {want}");
            }
            bits.push(got.into_iter().map(f64::to_bits).collect::<Vec<_>>());
        }
    }
    assert!(bits.iter().all(|other| *other == bits[0]), "stages differ");
}
