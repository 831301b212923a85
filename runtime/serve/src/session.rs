//! An open model, and what the commands do with it.

use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use exec::{Device, Executable, LaunchTime, Memory, Model, States, Trace};
use ir::{ModelInfo, ModelKind, Tensor, artifact::Artifact};
use text::{ChatRequest, EmbeddingConfig, TextBundle, TextError, Tokenizer};

use crate::{
    GenerateParams, Limits, Request, ServeError, StepModel,
    decoder::{Among, Decoder, ENTRY, Weights, blocks_of},
    embedder::Embedder,
    engine::{
        Event, NewToken,
        core::Core,
        prepare::{Prepared, prepare},
    },
    scheduler::Budget,
    sequence::Finish,
    verdict::Verdict,
};

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Where to run; by default on what the artifact is for.
    pub device: Option<Device>,
    /// Which GPU, if one is to be opened; by default the first.
    pub gpu: Option<u32>,
    /// Threads; by default as many as the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence to reserve key/value memory for; by default what the model is compiled for.
    pub max_seq_len: Option<usize>,
    /// Sequences of that length to reserve memory for; by default one.
    pub sequences: Option<NonZeroUsize>,
    /// Where to record runs and launches.
    pub trace: Option<Trace>,
}

/// A new token, as it is generated.
#[derive(Clone, Copy, Debug)]
pub struct TokenEvent<'a> {
    /// Number of the request.
    pub request: usize,
    /// Its id.
    pub token: u32,
    /// Logarithm of its probability by the model, whatever the sampling.
    pub logprob: f32,
    /// Text that has become certain with it: often that of the token before, or none.
    pub text: &'a str,
    /// Why the sequence ends with it.
    pub finish: Option<Finish>,
}

/// A generated sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens, an end-of-sequence token among them.
    pub tokens: Vec<u32>,
    /// One log-probability for each.
    pub logprobs: Vec<f32>,
    /// Their text up to a stop string, special tokens left out; `None` without tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
    /// From the call to the first token.
    pub first_token: Duration,
    /// From the call to the last token.
    pub last_token: Duration,
}

impl Generation {
    fn empty(has_text: bool) -> Generation {
        Generation {
            tokens: Vec::new(),
            logprobs: Vec::new(),
            text: has_text.then(String::new),
            finish: Finish::Cancelled,
            first_token: Duration::ZERO,
            last_token: Duration::ZERO,
        }
    }

    /// Adds a token; `None` if there is none, but only the end.
    fn push<'a>(
        &mut self,
        request: usize,
        new: &'a NewToken,
        elapsed: Duration,
    ) -> Option<TokenEvent<'a>> {
        self.finish = new.finish.unwrap_or(self.finish);
        self.text.iter_mut().for_each(|text| *text += &new.text);
        let token = new.token.as_ref()?;
        if self.tokens.is_empty() {
            self.first_token = elapsed;
        }
        self.last_token = elapsed;
        self.tokens.push(token.token);
        self.logprobs.push(token.logprob);
        Some(TokenEvent {
            request,
            token: token.token,
            logprob: token.logprob,
            text: &new.text,
            finish: new.finish,
        })
    }
}

/// Gathers what becomes of several requests.
struct Collector<F> {
    start: Instant,
    generations: Vec<Generation>,
    /// Those that the caller wants no more of.
    cancelled: Vec<usize>,
    /// The first thing that went wrong.
    failed: Option<ServeError>,
    on_token: F,
}

impl<F: FnMut(TokenEvent<'_>) -> ControlFlow<()>> Collector<F> {
    fn take(&mut self, request: u64, event: Event) -> ControlFlow<()> {
        let index = usize::try_from(request).unwrap_or(usize::MAX);
        match event {
            Event::Prompt(_) => {}
            Event::Failed(error) => {
                self.failed.get_or_insert(error);
            }
            Event::Token(new) => {
                let event = self.generations[index].push(index, &new, self.start.elapsed());
                if event.is_some_and(|event| (self.on_token)(event).is_break())
                    && new.finish.is_none()
                {
                    self.cancelled.push(index);
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// An open model.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    bundle: TextBundle,
    tokenizer: OnceLock<Option<Tokenizer>>,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    Decoder(Box<Core<Decoder>>),
    Encoder(Box<Embedder>),
    Graph(Box<Executable>, Verdict),
}

impl Session {
    /// Opens an artifact and reserves the memory that its use takes.
    ///
    /// # Errors
    /// [`ServeError`], which says what to do.
    pub fn open(path: &Path, options: SessionOptions) -> Result<Session, ServeError> {
        Session::of(Arc::new(Artifact::open(path)?), options)
    }

    /// As [`open`](Self::open), for an artifact that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(artifact: Arc<Artifact>, options: SessionOptions) -> Result<Session, ServeError> {
        let device = match &options.device {
            Some(device) => device.clone(),
            None => Device::open(&artifact.manifest().target, options.gpu, options.threads)?,
        };
        let verdict = Verdict::begin(&artifact, device.pool().threads());
        let bundle = artifact.text::<Option<TextBundle>>()?.unwrap_or_default();
        let model = Model::load(artifact, device)?;
        let info = &model.artifact().manifest().model;
        let max_seq_len = max_seq_len(info, options.max_seq_len)?;
        let mut engine = match info.kind {
            ModelKind::Decoder => decoder(&model, max_seq_len, &options, verdict, Weights::Own)?,
            ModelKind::Encoder => {
                Engine::Encoder(Box::new(Embedder::load(&model, max_seq_len, verdict)?))
            }
            ModelKind::Graph => {
                let threads = model.device().pool().threads();
                let manifest = model.artifact().manifest();
                Memory::predict(manifest, &["main"], threads, &[])?.check_limit(model.device())?;
                Engine::Graph(Box::new(Executable::load(&model, "main", &[])?), verdict)
            }
        };
        engine.executable().set_trace(options.trace);
        Ok(Session { model, bundle, tokenizer: OnceLock::new(), engine })
    }

    /// A session over a model in training, whose weights are states that [`lend`](Self::lend) takes
    /// for each use. It runs on the model's device; `bundle` is the model's tokenizer. All ranks
    /// that hold parts of the weights have to do the same with theirs, and get the same.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`ServeError::Artifact`] if there is no entry `step`.
    pub fn of_training(
        model: &Arc<Model>,
        bundle: TextBundle,
        options: &SessionOptions,
        among: &Among,
    ) -> Result<Session, ServeError> {
        let verdict = Verdict::begin(model.artifact(), model.device().pool().threads());
        let max_seq_len = max_seq_len(&model.artifact().manifest().model, options.max_seq_len)?;
        let mut engine = decoder(model, max_seq_len, options, verdict, Weights::Lent(among))?;
        engine.executable().set_trace(options.trace.clone());
        Ok(Session { model: model.clone(), bundle, tokenizer: OnceLock::new(), engine })
    }

    /// Works with weights that are lent: states of a training run. They are where they were, and
    /// nothing is copied.
    pub fn lend<R>(&mut self, weights: &mut States, work: impl FnOnce(&mut Session) -> R) -> R {
        if let Engine::Decoder(core) = &mut self.engine {
            core.model_mut().borrow(weights);
        }
        let result = work(self);
        if let Engine::Decoder(core) = &mut self.engine {
            *weights = core.model_mut().give_back();
        }
        result
    }

    /// The model.
    pub fn info(&self) -> &ModelInfo {
        &self.model.artifact().manifest().model
    }

    /// The artifact.
    pub fn artifact(&self) -> &Arc<Artifact> {
        self.model.artifact()
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        self.model.device()
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.model.device().pool().threads()
    }

    /// Tokenizer, templates and defaults as the artifact carries them.
    pub fn bundle(&self) -> &TextBundle {
        &self.bundle
    }

    /// What a language model takes at most; `None` for other models.
    pub fn limits(&self) -> Option<&Limits> {
        match &self.engine {
            Engine::Decoder(core) => Some(core.model().limits()),
            _ => None,
        }
    }

    /// The tokenizer, built on first use; `None` if the model has none.
    ///
    /// # Errors
    /// [`ServeError::Text`] if it cannot be built.
    pub fn tokenizer(&self) -> Result<Option<&Tokenizer>, ServeError> {
        if self.tokenizer.get().is_none() {
            // Of two threads that build one, the first to finish wins.
            let _ = self.tokenizer.set(self.bundle.tokenizer()?);
        }
        Ok(self.tokenizer.get().and_then(Option::as_ref))
    }

    /// Token ids of a prompt, with what the model expects before it.
    ///
    /// # Errors
    /// [`ServeError::Text`].
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>, ServeError> {
        Ok(self.require_tokenizer()?.encode(prompt, true)?)
    }

    /// Token ids of a conversation by the model's chat template, which sees the special tokens.
    ///
    /// # Errors
    /// [`ServeError::Text`]; [`ServeError::Kind`] if the model has no template.
    pub fn encode_chat(&self, mut request: ChatRequest) -> Result<Vec<u32>, ServeError> {
        let has_tools = !request.tools.as_ref().is_none_or(Vec::is_empty);
        let template = self.bundle.chat_template(has_tools)?;
        let template = template.ok_or_else(|| self.kind("has no chat template"))?;
        for (name, token) in self.bundle.special_tokens.variables() {
            request.variables.entry(name).or_insert(token);
        }
        Ok(self.require_tokenizer()?.encode(&template.render(&request)?, false)?)
    }

    /// Generates after a prompt; `on_token` may end it.
    ///
    /// # Errors
    /// [`ServeError::Request`] before anything is computed, if prompt or parameters are out of
    /// range; [`ServeError::Kind`] if the model does not generate.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        params: &GenerateParams,
        on_token: impl FnMut(TokenEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, ServeError> {
        let mut generations = self.generate_batch(&[(prompt, params)], on_token)?;
        Ok(generations.remove(0))
    }

    /// Generates after several prompts at once; the results are those of one at a time, bit for
    /// bit.
    ///
    /// Opened with [`SessionOptions::sequences`], so many of the longest sequences fit.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_batch(
        &mut self,
        requests: &[(&[u32], &GenerateParams)],
        on_token: impl FnMut(TokenEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ServeError> {
        let start = Instant::now();
        let mut prepared = Vec::with_capacity(requests.len());
        for (number, (prompt, params)) in requests.iter().enumerate() {
            let request = Request::new(prompt.to_vec(), (*params).clone());
            prepared.push(self.prepare(request, number as u64)?);
        }
        let has_text = self.tokenizer()?.is_some();
        let generations: Vec<Generation> =
            requests.iter().map(|_| Generation::empty(has_text)).collect();
        let core = self.decoder("does not generate text")?;
        let mut collector =
            Collector { start, generations, cancelled: vec![], failed: None, on_token };
        for prepared in prepared {
            core.add(prepared, &mut |request, event| collector.take(request, event));
        }
        let result = loop {
            match core.step(&mut |request, event| collector.take(request, event)) {
                Ok(true) => {}
                end => break end,
            }
            for request in std::mem::take(&mut collector.cancelled) {
                // What a cancelled sequence held back is part of its text.
                let rest = core.cancel(request as u64);
                collector.generations[request].text.iter_mut().for_each(|text| *text += &rest);
            }
        };
        // Nothing of this call may be left for the next.
        core.fail_all(|| ServeError::Stopped, &mut |_, _| ControlFlow::Continue(()));
        result?;
        collector.failed.map_or(Ok(collector.generations), Err)
    }

    /// The log-probability of each token given those before it, `None` for the first.
    ///
    /// # Errors
    /// [`ServeError::Request`] for no tokens, too many, or ids out of the vocabulary;
    /// [`ServeError::Kind`] if the model is no language model.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<Option<f32>>, ServeError> {
        self.decoder("does not score text")?;
        let params = GenerateParams { max_tokens: Some(0), ..GenerateParams::default() };
        let request = Request { prompt_logprobs: Some(0), ..Request::new(tokens.to_vec(), params) };
        let prepared = self.prepare(request, 0)?;
        let core = self.decoder("does not score text")?;
        let mut scores = Ok(Vec::new());
        let mut sink = |_, event: Event| {
            match event {
                Event::Prompt(prompt) => {
                    let logprobs = prompt.logprobs.iter();
                    scores = Ok(logprobs.map(|l| l.as_ref().map(|l| l.logprob)).collect());
                }
                Event::Failed(error) => scores = Err(error),
                Event::Token(_) => {}
            }
            ControlFlow::Continue(())
        };
        core.add(prepared, &mut sink);
        while core.step(&mut sink)? {}
        scores
    }

    /// One vector for each list of tokens.
    ///
    /// # Errors
    /// [`ServeError::Request`] for an empty or too long list or ids out of the vocabulary;
    /// [`ServeError::Kind`] if the model does not embed.
    pub fn embed(&mut self, lists: &[&[u32]]) -> Result<Vec<Vec<f32>>, ServeError> {
        match &mut self.engine {
            Engine::Encoder(embedder) => embedder.embed(lists),
            _ => Err(self.kind("does not embed text")),
        }
    }

    /// One vector for each text, cut where the model's configuration says.
    ///
    /// # Errors
    /// As [`embed`](Self::embed), and [`ServeError::Text`].
    pub fn embed_texts(&mut self, texts: &[&str]) -> Result<Vec<Vec<f32>>, ServeError> {
        if !matches!(self.engine, Engine::Encoder(_)) {
            return Err(self.kind("does not embed text"));
        }
        let lists: Vec<Vec<u32>> =
            texts.iter().map(|text| self.encode_for_embedding(text)).collect::<Result<_, _>>()?;
        self.embed(&lists.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// Token ids of a text to embed: with the default prompt before it, lowercased and cut as the
    /// model's configuration says.
    ///
    /// # Errors
    /// [`ServeError::Text`].
    pub fn encode_for_embedding(&self, text: &str) -> Result<Vec<u32>, ServeError> {
        let default = EmbeddingConfig::default();
        let config = self.bundle.embedding.as_ref().unwrap_or(&default);
        let prompt = config.default_prompt.as_ref().and_then(|name| config.prompts.get(name));
        let mut text = format!("{}{text}", prompt.map_or("", String::as_str));
        if config.lowercase {
            text = text.to_lowercase();
        }
        let longest = usize::try_from(self.info().max_seq_len).unwrap_or(usize::MAX);
        Ok(self.require_tokenizer()?.encode_truncated(&text, true, longest)?)
    }

    /// Runs a graph once; inputs in any order, outputs in the graph's.
    ///
    /// # Errors
    /// [`ServeError::Exec`] for inputs that do not fit; [`ServeError::Kind`] for language models.
    pub fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
    ) -> Result<Vec<(Arc<str>, Tensor)>, ServeError> {
        match &mut self.engine {
            Engine::Graph(executable, verdict) => {
                let outputs = executable.run_tensors(inputs)?;
                verdict.wait()?;
                Ok(outputs)
            }
            Engine::Encoder(embedder) => embedder.run_tensors(inputs),
            Engine::Decoder(_) => {
                Err(self.kind("keeps keys and values between steps, so it is not run as a graph"))
            }
        }
    }

    /// Memory that is reserved, and what is in use now.
    ///
    /// # Errors
    /// None that an open session gives.
    pub fn memory(&self) -> Result<(Memory, Memory), ServeError> {
        match &self.engine {
            Engine::Decoder(core) => core.model().memory(),
            Engine::Encoder(embedder) => embedder.memory(),
            Engine::Graph(executable, _) => {
                let manifest = self.model.artifact().manifest();
                let predicted = Memory::predict(manifest, &["main"], self.threads(), &[])?;
                Ok((predicted, Memory::measure(&[executable], &exec::States::none())))
            }
        }
    }

    /// Whether to measure each launch from now on.
    pub fn set_profiling(&mut self, on: bool) {
        self.engine.executable().set_profiling(on);
    }

    /// The launches of the last run, if they were measured.
    pub fn launch_times(&mut self) -> Vec<LaunchTime<'_>> {
        self.engine.executable().launch_times().collect()
    }

    fn prepare(&mut self, request: Request, number: u64) -> Result<Prepared, ServeError> {
        let limits = self.decoder("does not generate text")?.model().limits().clone();
        let tokenizer = self.tokenizer()?;
        prepare(request, number, &limits, tokenizer, &self.bundle.eos_ids(tokenizer))
    }

    fn require_tokenizer(&self) -> Result<&Tokenizer, ServeError> {
        Ok(self.tokenizer()?.ok_or_else(TextError::no_tokenizer)?)
    }

    fn decoder(&mut self, reason: &str) -> Result<&mut Core<Decoder>, ServeError> {
        let error = self.kind(reason);
        match &mut self.engine {
            Engine::Decoder(core) => Ok(core),
            _ => Err(error),
        }
    }

    fn kind(&self, reason: &str) -> ServeError {
        let info = self.info();
        let (what, command) = match info.kind {
            ModelKind::Decoder => ("a language model", "generate` and `brolly score"),
            ModelKind::Encoder => ("a model of embeddings", "embed"),
            ModelKind::Graph => ("a graph", "exec"),
        };
        ServeError::Kind {
            architecture: info.architecture.clone(),
            reason: format!("{reason}: it is {what}, for `brolly {command}`"),
        }
    }
}

impl Engine {
    fn executable(&mut self) -> &mut Executable {
        match self {
            Engine::Decoder(core) => core.model_mut().executable(),
            Engine::Encoder(embedder) => embedder.executable(),
            Engine::Graph(executable, _) => executable,
        }
    }
}

/// A language model with memory for the sequences that are asked for.
fn decoder(
    model: &Arc<Model>,
    max_seq_len: usize,
    options: &SessionOptions,
    verdict: Verdict,
    weights: Weights<'_>,
) -> Result<Engine, ServeError> {
    let sequences = options.sequences.map_or(1, NonZeroUsize::get);
    let blocks = blocks_of(model.artifact().program(ENTRY)?, max_seq_len, sequences)?;
    let decoder = Decoder::load(model, max_seq_len, blocks, verdict, weights)?;
    let budget = Budget::of(decoder.limits());
    Ok(Engine::Decoder(Box::new(Core::new(decoder, budget, false))))
}

/// The longest sequence: what the model is compiled for, or less if asked.
pub(crate) fn max_seq_len(info: &ModelInfo, asked: Option<usize>) -> Result<usize, ServeError> {
    let compiled = usize::try_from(info.max_seq_len).unwrap_or(usize::MAX);
    match asked {
        Some(n) if n == 0 || n > compiled => {
            let reason = format!(
                "is {n}, and the model is compiled for 1 to {compiled}; compile it with \
                 `--max-seq-len {n}`"
            );
            Err(ServeError::request("max_seq_len", reason))
        }
        asked => Ok(asked.unwrap_or(compiled)),
    }
}
