//! `brolly train`: a configuration to a trained model.

mod bar;
mod signals;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use exec::{Device, Model};
use text::TextBundle;
use train::{
    BatchShape, Checkpoints, ConfigError, DataConfig, DataContext, Dataset, Init, Line, Log,
    LossScale, MicroBatch, Offload, Position, Precision, Recompute, Rule, Saved, TrainConfig,
    TrainError, TrainStep, Trainer, export, export_lora, export_merged, fingerprint, initialize,
    initialize_lora, load_pretrained, stated_dropout,
};

use crate::{
    args::Train,
    commands::training_artifact,
    context::Context,
    failure::{Failure, Result},
    output, table,
};

use bar::Bar;
use signals::Signals;

pub(crate) fn train(args: &Train, cx: &Context) -> Result<()> {
    if let Err(e) = std::fs::File::open(&args.config) {
        return Err(Failure::input(format!("{}: cannot be read: {e}", args.config.display())));
    }
    let (config, notes) = TrainConfig::load(&args.config).map_err(|e| unusable(&e))?;
    for note in notes {
        output::tell(&format!("{}:{}: {note}\n", args.config.display(), note.line));
    }
    check(&config)?;
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
    let artifact = training_artifact(&config, cx)?;
    let device = Device::cpu(Some(cx.threads())).map_err(Failure::input)?;
    let model = Model::load(artifact, device).map_err(Failure::input)?;
    let mut step = TrainStep::load(&model).map_err(failure)?;
    step.set_trace(cx.trace());
    let dataset = open_data(&config.data, &config, &model, cx)?;
    let eval = config
        .eval
        .as_ref()
        .map(|eval| open_data(&config.data.of_file(&eval.data), &config, &model, cx));
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
            if config.lora.is_some() {
                initialize_lora(&mut step, config.train.seed);
            }
            (0, dataset.start())
        }
    };
    dataset.check(&position).map_err(Failure::input)?;
    tell_dropout(&config)?;
    tell_plan(&config, &step, &dataset, done)?;
    if args.dry_run {
        return Ok(());
    }
    let log = Log::open(config.log.jsonl.as_deref(), config.log.tensorboard.as_deref());
    let run = Run {
        config: &config,
        trainer: Trainer::new(step, Rule::of(&config), done).with_loss_scale(loss_scale),
        dataset: &dataset,
        eval: eval.as_ref(),
        checkpoints: &mut checkpoints,
        log: log.map_err(failure)?,
        position,
        fingerprint: run,
    };
    run.all(&signals)
}

/// A run under way.
struct Run<'a> {
    config: &'a TrainConfig,
    trainer: Trainer,
    dataset: &'a Dataset,
    eval: Option<&'a Dataset>,
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
            let line = match self.step() {
                Ok(line) => line,
                Err(e) => {
                    // What was begun before is whole on disk when the run ends.
                    self.checkpoints.finish().map_err(failure)?;
                    return Err(e);
                }
            };
            bar.show(&line);
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
        let (step, model) = (self.trainer.step(), &self.config.model);
        let [folder, merged] =
            ["final", "merged"].map(|name| self.config.checkpoint.dir.join(name));
        match &self.config.lora {
            Some(lora) => {
                export_lora(step, lora, model, &folder).map_err(failure)?;
                export_merged(step, model, &merged).map_err(failure)?;
                let (folder, merged) = (folder.display(), merged.display());
                output::tell(&format!("trained: adapters {folder}, merged {merged}\n"));
            }
            None => {
                export(step, model, &folder).map_err(failure)?;
                output::tell(&format!("trained: {}\n", folder.display()));
            }
        }
        Ok(())
    }

    fn shape(&self) -> BatchShape {
        BatchShape {
            micro_batch: self.config.data.micro_batch,
            data_ranks: 1,
            grad_accum: self.config.train.grad_accum,
        }
    }

    fn step(&mut self) -> Result<Line> {
        let start = Instant::now();
        let step = self.dataset.step(&self.position, self.shape()).map_err(Failure::input)?;
        let micro_steps = 0..self.config.train.grad_accum;
        let batches: Vec<MicroBatch> =
            micro_steps.filter_map(|i| step.batch(0, i)).map(|b| MicroBatch::from(&b)).collect();
        let metrics = self.trainer.advance(&batches).map_err(failure)?;
        self.position = step.next().clone();
        let tokens: usize = batches.iter().map(|batch| batch.tokens.len()).sum();
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
            peak_bytes: self.trainer.step().resident_bytes(),
            eval_loss,
            loss_scale: metrics.loss_scale,
            is_skipped: metrics.skipped.is_some(),
        };
        if let (Some(parameter), Some(scale)) = (&metrics.skipped, metrics.loss_scale) {
            output::tell(&format!(
                "step {}: the gradient of `{parameter}` is not finite at a loss scale of {scale}: \
                 nothing is updated, and the scale halves\n",
                metrics.step
            ));
        }
        self.log.write(&line).map_err(failure)?;
        Ok(line)
    }

    fn evaluate(&mut self, data: &Dataset) -> Result<Option<f64>> {
        let shape = BatchShape { grad_accum: 1, ..self.shape() };
        let mut batches = Vec::new();
        let mut index = 0;
        while let Some(step) = data.pass(index, shape).map_err(Failure::input)? {
            batches.extend(step.batch(0, 0).map(|batch| MicroBatch::from(&batch)));
            index += 1;
        }
        self.trainer.evaluate(batches).map_err(failure)
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

fn open_data(
    config: &DataConfig,
    run: &TrainConfig,
    model: &Model,
    cx: &Context,
) -> Result<Dataset> {
    let bundle = match TextBundle::load(&run.model) {
        Ok(bundle) => bundle,
        Err(errors) => {
            let problems: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(Failure::inputs(format!("{}", run.model.display()), problems));
        }
    };
    let vocab_size = model.artifact().manifest().model.vocab_size;
    let context = DataContext {
        bundle: &bundle,
        vocab_size: usize::try_from(vocab_size).unwrap_or(usize::MAX),
        cache_dir: &cache_dir(),
        seed: run.train.seed,
        threads: cx.threads().get(),
        progress: &|_| {},
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
fn tell_plan(config: &TrainConfig, step: &TrainStep, dataset: &Dataset, done: u64) -> Result<()> {
    let elements: usize = step.parameters().iter().map(|p| p.shape.iter().product::<usize>()).sum();
    let planned = step.planned().map_err(failure)?;
    planned.check_limit().map_err(Failure::input)?;
    let (rows, documents) = (dataset.rows(), dataset.documents());
    output::tell(&format!(
        "{elements} parameters, {} steps from {} on, {rows} rows of {} tokens from {documents} \
         documents\n{} planned: parameters, gradients and optimizer {}, activations {}, the rest {}\n",
        config.train.steps,
        done + 1,
        dataset.seq_len(),
        table::bytes(planned.total()),
        table::bytes(planned.state_bytes),
        table::bytes(planned.arena_bytes),
        table::bytes(planned.total() - planned.state_bytes - planned.arena_bytes),
    ));
    Ok(())
}
