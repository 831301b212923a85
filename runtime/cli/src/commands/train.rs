//! `brolly train`: a configuration to a trained model.

mod signals;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use exec::{Device, Model};
use text::TextBundle;
use train::{
    BatchShape, Checkpoints, ConfigError, DataContext, Dataset, Init, Line, Log, MicroBatch,
    Position, Rule, Saved, TrainConfig, TrainError, TrainStep, Trainer, export, initialize,
    load_pretrained,
};

use crate::{
    args::Train,
    commands::training_artifact,
    context::Context,
    failure::{Failure, Result},
    output, table,
};

use signals::Signals;

pub(crate) fn train(args: &Train, cx: &Context) -> Result<()> {
    let (config, notes) = TrainConfig::load(&args.config).map_err(|e| unusable(&e))?;
    for note in notes {
        output::tell(&format!("{}:{}: {note}\n", args.config.display(), note.line));
    }
    check(&config)?;
    let signals = Signals::install()?;
    let artifact = training_artifact(&config, cx)?;
    let device = Device::cpu(Some(cx.threads())).map_err(Failure::input)?;
    let model = Model::load(artifact, device).map_err(Failure::input)?;
    let mut step = TrainStep::load(&model).map_err(failure)?;
    let dataset = open_data(&config, &model, cx)?;
    let eval = config.eval.as_ref().map(|eval| {
        let data = config.data.of_file(&eval.data);
        open(&data, &config, &model, cx)
    });
    let eval = eval.transpose()?;
    let mut checkpoints = Checkpoints::new(&config.checkpoint.dir, config.checkpoint.keep);
    let run = fingerprint(&config);
    let saved = match args.resume {
        true => checkpoints.load::<Position>(&mut step, &run).map_err(failure)?,
        false => None,
    };
    let (done, position) = match saved {
        Some(Saved { step, position, .. }) => (step, position),
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
    tell_plan(&config, &step, &dataset, done);
    let log = Log::open(config.log.jsonl.as_deref(), config.log.tensorboard.as_deref());
    let run = Run {
        config: &config,
        trainer: Trainer::new(step, Rule::of(&config), done),
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
            let line = self.step()?;
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
        let folder = self.config.checkpoint.dir.join("final");
        export(self.trainer.step(), &self.config.model, &folder).map_err(failure)?;
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
        };
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
        };
        self.checkpoints.save(self.trainer.step(), saved).map_err(failure)
    }
}

/// What the configuration asks for and is not there yet, all of it.
fn check(config: &TrainConfig) -> Result<()> {
    let mesh = &config.mesh;
    let asked = [
        ("mesh", mesh.ranks() > 1 || mesh.expert > 1, "more than one rank"),
        ("lora", config.lora.is_some(), "low-rank adapters"),
        ("dropout", config.dropout.is_some_and(|p| p > 0.0), "dropout"),
        ("train.dtype", config.train.dtype != train::Precision::F32, "another type than f32"),
    ];
    let asked = asked.iter().filter(|(_, is_asked, _)| *is_asked);
    let problems: Vec<String> =
        asked.map(|(key, _, what)| format!("`{key}` asks for {what}, which is not there yet")).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::inputs("not there yet", problems)) }
}
