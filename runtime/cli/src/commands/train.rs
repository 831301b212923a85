//! `brolly train`: a configuration to a trained model.

mod artifact;
mod bar;
mod reading;
mod samples;
mod signals;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use exec::{Device, Model};
use ir::artifact::Manifest;
use text::TextBundle;
use train::{
    BatchShape, Checkpoints, ConfigError, DataConfig, DataContext, Dataset, Init, Line, Log,
    LossScale, MicroBatch, Offload, Position, Precision, Recompute, Rule, Saved, TrainConfig,
    TrainError, TrainStep, Trainer, export_as, fingerprint, initialize, load_pretrained,
};

use crate::{
    args::Train,
    context::Context,
    failure::{Failure, Result},
    output,
    plan::Plan,
};

use bar::Bar;
use reading::Reading;
use samples::Samples;
use signals::Signals;

pub(crate) fn train(args: &Train, cx: &Context) -> Result<()> {
    let config = configuration(&args.config)?;
    config.mesh.check(1).map_err(|e| Failure::Usage(e.to_string()))?;
    let mut checkpoints = Checkpoints::new(&config.checkpoint.dir, config.checkpoint.keep);
    if let (false, Some(step)) = (args.resume, checkpoints.newest()) {
        let dir = config.checkpoint.dir.display();
        return Err(Failure::input(format!(
            "{dir}: holds the checkpoint of step {step}; --resume goes on from it, or name another \
             checkpoint.dir"
        )));
    }
    let signals = Signals::install()?;
    let artifact = artifact::open(&config, args.artifact.as_deref(), cx)?;
    let bundle = bundle(&config)?;
    let device = Device::cpu(Some(cx.threads())).map_err(Failure::input)?;
    let model = Model::load(artifact, device).map_err(Failure::input)?;
    let mut step = TrainStep::load(&model).map_err(failure)?;
    step.set_trace(cx.trace());
    let dataset = open_data(&config.data, &config, &bundle, &model, cx)?;
    let eval = config.eval.as_ref().and_then(|eval| eval.data.as_ref());
    let eval = eval.map(|path| open_data(&config.data.of_file(path), &config, &bundle, &model, cx));
    let eval = eval.transpose()?;
    let run = fingerprint(&config).map_err(failure)?;
    let saved = match args.resume {
        true => checkpoints.load::<Position>(&mut step, &run).map_err(failure)?,
        false => None,
    };
    let mut loss_scale = (config.train.dtype == Precision::F16).then(LossScale::default);
    let (done, position) = match saved {
        Some(Saved { step, position, loss_scale: saved, .. }) => {
            loss_scale = saved.or(loss_scale);
            (step, position)
        }
        None => {
            match config.init {
                Init::Pretrained => load_pretrained(&mut step, &config.model),
                Init::Random => initialize(&mut step, &config.model, config.train.seed),
            }
            .map_err(failure)?;
            (0, dataset.start())
        }
    };
    dataset.check(&position).map_err(Failure::input)?;
    let manifest = model.artifact().manifest();
    let plan = plan_of(&config, &bundle, manifest, model.device().pool().threads())?;
    tell_plan(&config, &step, &dataset, done, &plan)?;
    if args.dry_run {
        return Ok(());
    }
    let samples = Samples::open(&config, &bundle, &model, cx)?;
    let log = Log::open(config.log.jsonl.as_deref(), config.log.tensorboard.as_deref());
    let run = Run {
        config: &config,
        trainer: Trainer::new(step, Rule::of(&config), done).with_loss_scale(loss_scale),
        dataset: &dataset,
        eval: eval.as_ref(),
        samples,
        checkpoints: &mut checkpoints,
        log: log.map_err(failure)?,
        position,
        fingerprint: run,
    };
    run.all(&signals)
}

/// Reads a configuration, which must ask for nothing that is not there.
pub(crate) fn configuration(path: &Path) -> Result<TrainConfig> {
    if let Err(e) = std::fs::File::open(path) {
        return Err(Failure::input(format!("{}: cannot be read: {e}", path.display())));
    }
    let (config, notes) = TrainConfig::load(path).map_err(|e| unusable(&e))?;
    for note in notes {
        output::tell(&format!("{}:{}: {note}\n", path.display(), note.line));
    }
    check(&config)?;
    Ok(config)
}

/// The plan of a configuration's run, and its cap, for `brolly plan`.
pub(super) fn plan(path: &Path, cx: &Context) -> Result<(Plan, Option<u64>)> {
    let config = configuration(path)?;
    let artifact = artifact::open(&config, None, cx)?;
    let bundle = bundle(&config)?;
    let plan = plan_of(&config, &bundle, artifact.manifest(), cx.threads().get())?;
    Ok((plan, config.memory.device.map(|size| size.0)))
}

fn plan_of(
    config: &TrainConfig,
    bundle: &TextBundle,
    manifest: &Manifest,
    threads: usize,
) -> Result<Plan> {
    let blocks = samples::blocks(config, bundle, manifest)?;
    let symbols: Vec<(&str, i64)> = blocks.iter().map(|(s, n)| (s.as_str(), *n)).collect();
    Plan::of(manifest, threads, &symbols)
}

/// A run under way.
struct Run<'a> {
    config: &'a TrainConfig,
    trainer: Trainer,
    dataset: &'a Dataset,
    eval: Option<&'a Dataset>,
    samples: Option<Samples>,
    checkpoints: &'a mut Checkpoints,
    log: Log,
    position: Position,
    fingerprint: String,
}

impl Run<'_> {
    fn all(mut self, signals: &Signals) -> Result<()> {
        let steps = self.config.train.steps;
        let bar = Bar::new(steps, self.trainer.done());
        while self.trainer.done() < steps {
            let line = match self.step(&bar) {
                Ok(line) => line,
                Err(e) => {
                    // What was begun before is whole on disk when the run ends.
                    self.checkpoints.finish().map_err(failure)?;
                    return Err(e);
                }
            };
            let done = line.step;
            let is_asked = signals.is_asked();
            if done % self.config.checkpoint.every == 0 || done == steps || is_asked {
                self.save()?;
            }
            if is_asked && done < steps {
                self.checkpoints.finish().map_err(failure)?;
                drop(bar);
                output::tell(&format!(
                    "asked to end: step {done} of {steps} is saved; --resume goes on\n"
                ));
                return Ok(());
            }
        }
        self.checkpoints.finish().map_err(failure)?;
        drop(bar);
        let folder = self.config.checkpoint.dir.join("final");
        let dtype = self.config.checkpoint.final_dtype.narrow();
        export_as(self.trainer.step(), &self.config.model, &folder, dtype).map_err(failure)?;
        output::tell(&format!("trained: {}\n", folder.display()));
        Ok(())
    }

    fn shape(&self) -> BatchShape {
        BatchShape {
            micro_batch: self.config.data.micro_batch,
            data_ranks: 1,
            grad_accum: self.config.train.grad_accum,
        }
    }

    fn step(&mut self, bar: &Bar) -> Result<Line> {
        let start = Instant::now();
        let step = self.dataset.step(&self.position, self.shape()).map_err(Failure::input)?;
        let micro_steps = 0..self.config.train.grad_accum;
        let batches: Vec<MicroBatch> =
            micro_steps.filter_map(|i| step.batch(0, i)).map(|b| MicroBatch::from(&b)).collect();
        let metrics = self.trainer.advance(&batches).map_err(failure)?;
        self.position = step.next().clone();
        let tokens: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let seconds = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
        let eval_loss = match (&self.config.eval, self.eval) {
            (Some(eval), Some(data)) if metrics.step % eval.every == 0 => self.evaluate(data)?,
            _ => None,
        };
        let line = Line {
            step: metrics.step,
            loss: metrics.loss,
            grad_norm: metrics.grad_norm,
            lr: metrics.lr,
            tokens_per_s: tokens as f64 / seconds,
            peak_bytes: self.trainer.step().resident_bytes()
                + self.samples.as_ref().map_or(0, Samples::resident_bytes),
            eval_loss,
            loss_scale: metrics.loss_scale,
            is_skipped: metrics.skipped.is_some(),
        };
        if let (Some(parameter), Some(scale)) = (&metrics.skipped, metrics.loss_scale) {
            bar.above(&format!(
                "step {}: the gradient of `{parameter}` is not finite at a loss scale of {scale}: \
                 nothing is updated, and the scale halves\n",
                metrics.step
            ));
        }
        self.log.write(&line).map_err(failure)?;
        bar.show(&line);
        self.sample(bar)?;
        Ok(line)
    }

    /// Generates texts, if they are due.
    fn sample(&mut self, bar: &Bar) -> Result<()> {
        let (step, steps) = (self.trainer.done(), self.config.train.steps);
        let Some(samples) = self.samples.as_mut().filter(|samples| samples.are_due(step, steps))
        else {
            return Ok(());
        };
        let texts = samples.generate(&mut self.trainer)?;
        bar.above(&samples::shown(step, &texts));
        self.log.write_samples(step, &texts).map_err(failure)
    }

    fn evaluate(&mut self, data: &Dataset) -> Result<Option<f64>> {
        let shape = BatchShape { grad_accum: 1, ..self.shape() };
        let mut failed = None;
        let batches = (0..).map_while(|index| match data.pass(index, shape) {
            Ok(step) => step?.batch(0, 0).map(|batch| MicroBatch::from(&batch)),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let loss = self.trainer.evaluate(batches).map_err(failure)?;
        failed.map_or(Ok(loss), |error| Err(Failure::input(error)))
    }

    fn save(&mut self) -> Result<()> {
        let saved = Saved {
            step: self.trainer.done(),
            position: self.position.clone(),
            run: self.fingerprint.clone(),
            loss_scale: self.trainer.loss_scale(),
        };
        self.checkpoints.save(self.trainer.step(), saved).map_err(failure)
    }
}

/// What the configuration asks for and is not there yet, all of it.
fn check(config: &TrainConfig) -> Result<()> {
    let mesh = &config.mesh;
    let asked = [
        ("mesh", mesh.ranks() > 1 || mesh.expert > 1, "more than one rank"),
        ("lora", config.lora.is_some(), "adapters"),
        ("dropout", config.dropout.is_some_and(|p| p > 0.0), "dropout"),
        ("memory.recompute", config.memory.recompute == Recompute::Full, "recomputation"),
        ("memory.offload", config.memory.offload != Offload::None, "offloading"),
    ];
    let asked = asked.iter().filter(|(_, is_asked, _)| *is_asked);
    let tell = |(key, _, what): &(&str, bool, &str)| {
        format!("`{key}` asks for {what}, which is not there yet")
    };
    let problems: Vec<String> = asked.map(tell).collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::Config(problems.join("\n"))),
    }
}

fn unusable(error: &ConfigError) -> Failure {
    Failure::Config(error.to_string())
}

fn failure(error: TrainError) -> Failure {
    Failure::input(error)
}

/// What the model's folder says about text.
fn bundle(run: &TrainConfig) -> Result<TextBundle> {
    TextBundle::load(&run.model).map_err(|errors| {
        let problems: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::inputs(format!("{}", run.model.display()), problems)
    })
}

fn open_data(
    config: &DataConfig,
    run: &TrainConfig,
    bundle: &TextBundle,
    model: &Model,
    cx: &Context,
) -> Result<Dataset> {
    let reading = Reading::new();
    let vocab_size = model.artifact().manifest().model.vocab_size;
    let context = DataContext {
        bundle,
        vocab_size: usize::try_from(vocab_size).unwrap_or(usize::MAX),
        cache_dir: &cache_dir(),
        seed: run.train.seed,
        threads: cx.threads().get(),
        progress: &|progress| reading.show(progress),
    };
    Dataset::open(config, &context).map_err(|errors| {
        let problems: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::inputs("the data cannot be used", problems)
    })
}

/// Where tokens are kept: `$BROLLY_CACHE`, else `$XDG_CACHE_HOME/brolly`, else `~/.cache/brolly`.
fn cache_dir() -> PathBuf {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = var("BROLLY_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("brolly")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache/brolly")))
        .unwrap_or_else(|| std::env::temp_dir().join("brolly-cache"));
    dir.join("tokens")
}

/// What is about to be done, in a few lines.
fn tell_plan(
    config: &TrainConfig,
    step: &TrainStep,
    dataset: &Dataset,
    done: u64,
    plan: &Plan,
) -> Result<()> {
    let elements: usize = step.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let (rows, documents) = (dataset.rows(), dataset.documents());
    output::tell(&format!(
        "{elements} parameters, {} steps from {} on, {rows} rows of {} tokens from {documents} \
         documents\n{}",
        config.train.steps,
        done + 1,
        dataset.seq_len(),
        plan.table(),
    ));
    plan.check(config.memory.device.map(|size| size.0))
}
