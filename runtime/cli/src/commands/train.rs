//! `brolly train`: a configuration to a trained model.

mod artifact;
mod bar;
mod ranks;
mod reading;
mod samples;
mod sent;
mod signals;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use exec::{Device, GPU_OVERHEAD_BYTES, Model, memory_limit_bytes};
use ir::artifact::Manifest;
use text::TextBundle;
use train::{
    BatchShape, Checkpoints, ConfigError, DataConfig, DataContext, Dataset, Init, Line, Log,
    LossScale, MicroBatch, Offload, Optimizer, Position, Precision, Rank, Rule, Saved, TrainConfig,
    TrainError, TrainStep, Trainer, export_as, export_lora, export_merged, fingerprint, initialize,
    initialize_lora, load_pretrained, stated_dropout,
};

use crate::{
    args::Train,
    commands::training_plan,
    context::Context,
    failure::{Failure, Result},
    output,
    plan::Plan,
    table,
};

use bar::Bar;
use ranks::{End, Share};
use reading::Reading;
use samples::Samples;
use signals::Signals;

pub(crate) fn train(args: &Train, cx: &Context) -> Result<()> {
    let config = configuration(&args.config)?;
    let checkpoints = Checkpoints::new(&config.checkpoint.dir, config.checkpoint.keep);
    if let (false, Some(step)) = (args.resume, checkpoints.newest()) {
        let dir = config.checkpoint.dir.display();
        return Err(Failure::input(format!(
            "{dir}: holds the checkpoint of step {step}; --resume goes on from it, or name another \
             checkpoint.dir"
        )));
    }
    let signals = Signals::install()?;
    ranks::run(args.ranks, &config.mesh, |rank, share| {
        train_as(rank, share, &config, &signals, args, cx)
    })
}

/// Trains as one of the ranks.
fn train_as(
    rank: &Rank,
    share: Share,
    config: &TrainConfig,
    signals: &Signals,
    args: &Train,
    cx: &Context,
) -> End {
    // The first compiles, and makes tokens of the data, into caches that the others find.
    let threads = Some(share.of(cx.threads()));
    let gpu = match artifact::is_for_gpus(args) {
        true => Some(Device::open_gpu(share.gpu(cx.gpu())?, threads).map_err(Failure::input)?),
        false => None,
    };
    let memory = match &gpu {
        Some(gpu) => gpu_memory(rank, gpu)?,
        None => memory_limit_bytes().map(|bytes| share.of_bytes(bytes)),
    };
    let open = || artifact::open(config, args, memory, cx);
    let artifact = rank.first(open)?.unwrap_or_else(open)?;
    let bundle = bundle(config)?;
    let target = &artifact.manifest().target;
    let device = match (gpu, &target.cuda) {
        (Some(gpu), _) => gpu,
        (None, Some(_)) => {
            Device::open_gpu(share.gpu(cx.gpu())?, threads).map_err(Failure::input)?
        }
        (None, None) => Device::open(target, cx.gpu(), threads).map_err(Failure::input)?,
    };
    let cap = config.memory.device.map(|size| size.0);
    let cap = cap.or_else(|| device.facts().and(device.memory_limit_bytes()));
    let model = Model::load(artifact, device).map_err(Failure::input)?;
    let mut rank = rank.clone();
    let by_host = rank.link(model.device(), args.collectives).map_err(Failure::input)?;
    if let (Some(reason), true) = (by_host, rank.is_first()) {
        output::tell(&format!("collectives go by way of the host: {reason}\n"));
    }
    let rank = &rank;
    let mut step = TrainStep::load(&model, rank).map_err(failure)?;
    step.reserve(config.train.grad_accum).map_err(failure)?;
    if rank.is_first() {
        step.set_trace(cx.trace());
    }
    let open = || {
        let dataset = open_data(&config.data, config, &bundle, &model, cx)?;
        let eval = config.eval.as_ref().and_then(|eval| eval.data.as_ref());
        let eval =
            eval.map(|path| open_data(&config.data.of_file(path), config, &bundle, &model, cx));
        Ok::<_, Failure>((dataset, eval.transpose()?))
    };
    let (dataset, eval) = rank.first(open)?.unwrap_or_else(open)?;
    let fingerprint = fingerprint(config).map_err(failure)?;
    let mut checkpoints = Checkpoints::new(&config.checkpoint.dir, config.checkpoint.keep);
    let saved = match args.resume {
        true => checkpoints.load::<Position>(&mut step, &fingerprint).map_err(failure)?,
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
            if config.lora.is_some() {
                initialize_lora(&mut step, config.train.seed).map_err(failure)?;
            }
            (0, dataset.start())
        }
    };
    dataset.check(&position).map_err(Failure::input)?;
    agree(rank, done)?;
    if rank.is_first() {
        let manifest = model.artifact().manifest();
        let threads = model.device().pool().threads();
        let plan = plan_of(config, &bundle, manifest, threads, rank.index())?;
        tell_dropout(config)?;
        tell_plan(config, &step, &dataset, done, (&plan, cap))?;
    }
    if args.dry_run {
        return Ok(None);
    }
    let samples = match rank.is_first() || samples::are_shared(config) {
        true => Samples::open(config, &bundle, &model, rank, cx)?,
        false => None,
    };
    let log = match rank.is_first() {
        true => Log::open(config.log.jsonl.as_deref(), config.log.tensorboard.as_deref()),
        false => Log::open(None, None),
    };
    let run = Run {
        config,
        rank,
        trainer: Trainer::new(step, Rule::of(config), done)
            .with_loss_scale(loss_scale)
            .with_seed(config.train.seed),
        dataset: &dataset,
        eval: eval.as_ref(),
        samples,
        checkpoints: &mut checkpoints,
        log: log.map_err(failure)?,
        position,
        fingerprint,
    };
    run.all(signals)
}

/// What a step may take of the GPU of a rank, where nothing is said of it: what is free on each
/// rank's, but for what loaded code takes. In whole GiB, so that as much is free in the next run.
fn gpu_memory(rank: &Rank, gpu: &Device) -> Result<Option<u64>> {
    const STEP: u64 = 1 << 30;
    let free = gpu.memory_limit_bytes().unwrap_or(0).saturating_sub(GPU_OVERHEAD_BYTES);
    let least = rank.all([free as f64])?.into_iter().fold(f64::INFINITY, |a, [b]| a.min(b));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of memory")]
    let least = least as u64;
    Ok(Some(if least > STEP { least / STEP * STEP } else { least }))
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

/// The plans of a configuration's ranks, and their cap, for `brolly plan`.
pub(super) fn plan(path: &Path, cx: &Context) -> Result<(Vec<Plan>, Option<u64>)> {
    let config = configuration(path)?;
    let artifact = training_plan(&config, cx)?;
    let bundle = bundle(&config)?;
    let of_rank = |rank| plan_of(&config, &bundle, artifact.manifest(), cx.threads().get(), rank);
    let ranks = usize::try_from(config.mesh.ranks()).unwrap_or(usize::MAX);
    let plans = (0..ranks).map(of_rank).collect::<Result<Vec<Plan>>>()?;
    Ok((plans, config.memory.device.map(|size| size.0)))
}

fn plan_of(
    config: &TrainConfig,
    bundle: &TextBundle,
    manifest: &Manifest,
    threads: usize,
    index: usize,
) -> Result<Plan> {
    let blocks = samples::blocks(config, bundle, manifest)?;
    let places = Rank::symbols_of(&config.mesh, index).map_err(Failure::from)?;
    let symbols = blocks.iter().chain(&places).map(|(symbol, n)| (symbol.as_str(), *n));
    let symbols: Vec<(&str, i64)> = symbols.collect();
    let stages = config.mesh.pipeline;
    if stages == 1 {
        return Plan::of(manifest, threads, &symbols);
    }
    let stage = Rank::stage_of(&config.mesh, index).map_err(Failure::from)?;
    let sets = train::sets(stage, stages, config.train.grad_accum);
    Plan::of_stage(&train::stage_manifest(manifest, stage), threads, &symbols, sets)
}

/// Whether all ranks go on from the same step: they may see different files.
fn agree(rank: &Rank, done: u64) -> Result<()> {
    let own = done as f64;
    let steps: Vec<f64> = rank.all([own])?.into_iter().map(|[step]| step).collect();
    match steps.iter().all(|step| *step == own) {
        true => Ok(()),
        false => Err(Failure::input(format!(
            "ranks find checkpoints of different steps ({steps:?}): checkpoint.dir must be one \
             folder that all of them see"
        ))),
    }
}

/// A run under way.
struct Run<'a> {
    config: &'a TrainConfig,
    rank: &'a Rank,
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
    fn all(mut self, signals: &Signals) -> End {
        let steps = self.config.train.steps;
        let bar = Bar::new(self.rank.is_first(), steps, self.trainer.done());
        while self.trainer.done() < steps {
            let line = match self.step(&bar) {
                Ok(line) => line,
                Err(e) => {
                    // What was begun before is whole on disk when the run ends.
                    self.checkpoints.finish().map_err(failure)?;
                    let is_agreed =
                        matches!(e, TrainError::NotFinite { .. } | TrainError::NoTargets { .. });
                    return if is_agreed { Ok(Some(failure(e))) } else { Err(failure(e)) };
                }
            };
            self.sample(&bar)?;
            let done = line.step;
            let is_asked = self.rank.any(signals.is_asked())?;
            if done % self.config.checkpoint.every == 0 || done == steps || is_asked {
                self.save()?;
            }
            if is_asked && done < steps {
                self.finish()?;
                drop(bar);
                self.tell(&format!(
                    "asked to end: step {done} of {steps} is saved; --resume goes on\n"
                ));
                return Ok(None);
            }
        }
        self.finish()?;
        drop(bar);
        let (step, model) = (self.trainer.step(), &self.config.model);
        let [folder, merged] =
            ["final", "merged"].map(|name| self.config.checkpoint.dir.join(name));
        match &self.config.lora {
            Some(lora) => {
                export_lora(step, lora, model, &folder).map_err(failure)?;
                export_merged(step, model, &merged).map_err(failure)?;
                let (folder, merged) = (folder.display(), merged.display());
                self.tell(&format!("trained: adapters {folder}, merged {merged}\n"));
            }
            None => {
                let dtype = self.config.checkpoint.final_dtype.narrow();
                export_as(step, model, &folder, dtype).map_err(failure)?;
                self.tell(&format!("trained: {}\n", folder.display()));
            }
        }
        Ok(None)
    }

    /// Says something once.
    fn tell(&self, text: &str) {
        if self.rank.is_first() {
            output::tell(text);
        }
    }

    /// Waits until checkpoints are on disk.
    fn finish(&mut self) -> Result<()> {
        let checkpoints = &mut *self.checkpoints;
        self.rank.first(|| checkpoints.finish())?.transpose().map_err(failure)?;
        Ok(())
    }

    fn shape(&self) -> BatchShape {
        BatchShape {
            micro_batch: self.config.data.micro_batch,
            data_ranks: self.rank.data_ranks(),
            grad_accum: self.config.train.grad_accum,
        }
    }

    fn step(&mut self, bar: &Bar) -> Result<Line, TrainError> {
        let start = Instant::now();
        let step = self.dataset.step(&self.position, self.shape())?;
        let micro_steps = 0..self.config.train.grad_accum;
        let batches = micro_steps.filter_map(|i| step.batch(self.rank.data_rank(), i));
        let batches: Vec<MicroBatch> = batches.map(|b| MicroBatch::from(&b)).collect();
        let metrics = self.trainer.advance(&batches)?;
        self.position = step.next().clone();
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
            tokens_per_s: metrics.targets as f64 / seconds,
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
        self.log.write(&line)?;
        bar.show(&line);
        Ok(line)
    }

    /// Generates texts, if they are due. The first rank does where it has all weights.
    fn sample(&mut self, bar: &Bar) -> Result<()> {
        let (step, steps) = (self.trainer.done(), self.config.train.steps);
        let eval = self.config.eval.as_ref().filter(|eval| eval.sequences() > 0);
        if !eval.is_some_and(|eval| step % eval.every == 0 || step == steps) {
            return Ok(());
        }
        let (samples, trainer, log) = (&mut self.samples, &mut self.trainer, &mut self.log);
        // Whatever is to be gathered is gathered together.
        trainer.lend(|_| ()).map_err(failure)?;
        let is_first = self.rank.is_first();
        let mut generate = || {
            let Some(samples) = samples else { return Ok(()) };
            let texts = samples.generate(trainer)?;
            if !is_first {
                return Ok(());
            }
            bar.above(&samples::shown(step, &texts));
            log.write_samples(step, &texts).map_err(failure)
        };
        match samples::are_shared(self.config) {
            true => generate(),
            false => self.rank.first(generate)?.unwrap_or(Ok(())),
        }
    }

    fn evaluate(&mut self, data: &Dataset) -> Result<Option<f64>, TrainError> {
        let shape = BatchShape { grad_accum: 1, ..self.shape() };
        let rank = self.rank.data_rank();
        let mut failed = None;
        let batches = (0..).map_while(|index| match data.pass(index, shape) {
            Ok(step) => step?.batch(rank, 0).map(|batch| MicroBatch::from(&batch)),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let loss = self.trainer.evaluate(batches)?;
        failed.map_or(Ok(loss), |error| Err(error.into()))
    }

    fn save(&mut self) -> Result<()> {
        self.finish()?;
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
    let has_samples = config.eval.as_ref().is_some_and(|eval| eval.sequences() > 0);
    let asked = [
        ("mesh.sequence", mesh.sequence > 1, "rows in parts"),
        ("mesh.expert", mesh.expert > 1, "experts in parts"),
        ("eval.prompts", has_samples && mesh.pipeline > 1, "texts of layers in parts"),
        (
            "lora",
            config.lora.is_some() && mesh.tensor > 1,
            "adapters of products in parts (mesh.tensor)",
        ),
        ("memory.offload", config.memory.offload != Offload::None, "offloading"),
    ];
    let needs_all = match config.optimizer.rule {
        Optimizer::Adafactor { .. } => Some("adafactor"),
        Optimizer::Muon { .. } => Some("muon"),
        _ => None,
    };
    let parts = [
        ("zero", usize::from(mesh.zero), mesh.zero > 0 && mesh.data > 1, 0),
        ("tensor", mesh.tensor, mesh.tensor > 1, 1),
    ];
    let parts = parts.into_iter().filter(|(.., is_asked, _)| *is_asked);
    let whole = parts.filter_map(|(key, value, _, other)| {
        let name = needs_all?;
        Some(format!(
            "`mesh.{key}` is {value}, and {name} updates no part of a parameter without the rest: \
             take {key} = {other}, or adamw, lion or sgd",
        ))
    });
    let asked = asked.iter().filter(|(_, is_asked, _)| *is_asked);
    let tell = |(key, _, what): &(&str, bool, &str)| {
        format!("`{key}` asks for {what}, which is not there yet")
    };
    let problems: Vec<String> = asked.map(tell).chain(whole).collect();
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

/// What dropout the model was made with, where the configuration says nothing of it.
fn tell_dropout(config: &TrainConfig) -> Result<()> {
    let stated = stated_dropout(&config.model).map_err(failure)?;
    if config.dropout.is_none() && !stated.is_empty() {
        let stated: Vec<String> =
            stated.iter().map(|(key, share)| format!("{key} {share}")).collect();
        let (model, stated) = (config.model.display(), stated.join(", "));
        output::tell(&format!(
            "{model}/config.json asks for dropout ({stated}): none is applied\n"
        ));
    }
    Ok(())
}

/// What is about to be done, in a few lines.
fn tell_plan(
    config: &TrainConfig,
    step: &TrainStep,
    dataset: &Dataset,
    done: u64,
    (plan, cap): (&Plan, Option<u64>),
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
    if !step.rank().is_alone() {
        output::tell(&format!(
            "{}: this is one's, which sends {} in a step\n",
            config.mesh,
            table::bytes(sent::bytes(step, config.train.grad_accum as u64)),
        ));
    }
    plan.check(cap)
}
