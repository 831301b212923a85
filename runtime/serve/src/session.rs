//! An open model, and what the commands do with it.

use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use exec::{Device, Executable, LaunchTime, Memory, Model, Trace};
use ir::{ModelInfo, ModelKind, Tensor, artifact::Artifact};
use text::{ChatRequest, EmbeddingConfig, TextBundle, TextError, Tokenizer};

use crate::{
    Batch, BlockPool, Limits, Sampler, SamplingParams, ServeError, StepModel,
    decoder::Decoder,
    detokenizer::Detokenizer,
    embedder::Embedder,
    generate::{Finish, NewToken, Sequence, Stopping, advance},
    score::score,
    verdict::Verdict,
};

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Threads; by default as many as the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence to reserve key/value memory for; by default what the model is compiled for.
    pub max_seq_len: Option<usize>,
    /// Sequences of that length to reserve memory for; by default one.
    pub sequences: Option<NonZeroUsize>,
    /// Where to record runs and launches.
    pub trace: Option<Trace>,
}

/// How to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateParams {
    /// New tokens at most; by default up to the longest sequence.
    pub max_tokens: Option<usize>,
    /// New tokens before which the sequence does not end.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the sequence and are not part of its text.
    pub stop: Vec<String>,
    /// Further tokens that end the sequence.
    pub stop_token_ids: Vec<u32>,
    /// Whether to go on after the model's end-of-sequence tokens.
    pub ignore_eos: bool,
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
    Decoder(Box<Decoder>),
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
        let device = Device::cpu(options.threads)?;
        let verdict = Verdict::begin(&artifact, device.pool().threads());
        let bundle = artifact.text::<Option<TextBundle>>()?.unwrap_or_default();
        let model = Model::load(artifact, device)?;
        let info = &model.artifact().manifest().model;
        let max_seq_len = max_seq_len(info, options.max_seq_len)?;
        let mut engine = match info.kind {
            ModelKind::Decoder => {
                let sequences = options.sequences.map_or(1, NonZeroUsize::get);
                let decoder = Decoder::load(&model, max_seq_len, sequences, verdict)?;
                Engine::Decoder(Box::new(decoder))
            }
            ModelKind::Encoder => {
                Engine::Encoder(Box::new(Embedder::load(&model, max_seq_len, verdict)?))
            }
            ModelKind::Graph => {
                let threads = model.device().pool().threads();
                let manifest = model.artifact().manifest();
                Memory::predict(manifest, &["main"], threads, &[])?.check_limit()?;
                Engine::Graph(Box::new(Executable::load(&model, "main", &[])?), verdict)
            }
        };
        engine.executable().set_trace(options.trace);
        Ok(Session { model, bundle, tokenizer: OnceLock::new(), engine })
    }

    /// The model.
    pub fn info(&self) -> &ModelInfo {
        &self.model.artifact().manifest().model
    }

    /// The artifact.
    pub fn artifact(&self) -> &Arc<Artifact> {
        self.model.artifact()
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
            Engine::Decoder(decoder) => Some(decoder.limits()),
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
        mut on_token: impl FnMut(TokenEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>, ServeError> {
        let start = Instant::now();
        let has_text = self.tokenizer()?.is_some();
        let mut texts = Vec::with_capacity(requests.len());
        let mut stoppings = Vec::with_capacity(requests.len());
        for (prompt, params) in requests {
            stoppings.push(self.stopping(prompt.len(), params)?);
            texts.push(Detokenizer::new(
                self.tokenizer()?,
                prompt,
                &params.stop,
                params.min_tokens,
            )?);
        }
        let decoder = self.decoder("does not generate text")?;
        let limits = decoder.limits().clone();
        let mut pool = BlockPool::new(limits.blocks, limits.block_size);
        let mut sequences = Vec::with_capacity(requests.len());
        for ((prompt, params), stopping) in requests.iter().zip(stoppings) {
            let sampler = Sampler::new(params.sampling.clone(), 0)?;
            sequences.push(Sequence::new(prompt, sampler, stopping, &limits, &mut pool)?);
        }
        let mut times = vec![(Duration::ZERO, Duration::ZERO); requests.len()];
        let mut batch = Batch::default();
        let mut more = true;
        while more {
            more = advance(decoder, &mut sequences, &mut batch, |new| {
                let (first, last) = &mut times[new.sequence];
                *last = start.elapsed();
                *first = if first.is_zero() { *last } else { *first };
                let detokenizer = &mut texts[new.sequence];
                let is_end = matches!(new.finish, Some(Finish::EndOfSequence(_)));
                let (mut text, mut stop) = (String::new(), None);
                if !is_end {
                    (text, stop) = detokenizer.push(Some(new.token))?;
                }
                if new.finish.is_some() && stop.is_none() {
                    let (rest, found) = detokenizer.push(None)?;
                    (text, stop) = (text + &rest, found);
                }
                let finish = stop.map(Finish::Stop).or(new.finish);
                let NewToken { sequence: request, token, logprob, .. } = new;
                let event = TokenEvent { request, token, logprob, text: &text, finish };
                Ok(match (on_token(event), finish) {
                    (_, Some(finish)) => ControlFlow::Break(finish),
                    (ControlFlow::Break(()), None) => ControlFlow::Break(Finish::Cancelled),
                    (ControlFlow::Continue(()), None) => ControlFlow::Continue(()),
                })
            })?;
        }
        let parts = sequences.into_iter().zip(texts).zip(times);
        type Parts = ((Sequence, Detokenizer), (Duration, Duration));
        let generation = |((sequence, mut text), (first_token, last_token)): Parts| {
            // What a cancelled sequence held back is part of its text.
            text.push(None)?;
            Ok(Generation {
                tokens: sequence.new_tokens().to_vec(),
                logprobs: sequence.logprobs().to_vec(),
                text: has_text.then(|| text.into_text()),
                finish: sequence.finish().unwrap_or(Finish::Cancelled),
                first_token,
                last_token,
            })
        };
        parts.map(generation).collect()
    }

    /// The log-probability of each token given those before it, `None` for the first.
    ///
    /// # Errors
    /// [`ServeError::Request`] for no tokens, too many, or ids out of the vocabulary;
    /// [`ServeError::Kind`] if the model is no language model.
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<Option<f32>>, ServeError> {
        let decoder = self.decoder("does not score text")?;
        let limits = decoder.limits();
        let mut pool = BlockPool::new(limits.blocks, limits.block_size);
        score(decoder, &mut pool, tokens)
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
            Engine::Decoder(decoder) => decoder.memory(),
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

    /// When a sequence ends, by the request and the model's own end-of-sequence tokens.
    fn stopping(&self, prompt: usize, params: &GenerateParams) -> Result<Stopping, ServeError> {
        let mut end_ids = params.stop_token_ids.clone();
        if !params.ignore_eos {
            end_ids.extend(self.bundle.eos_ids(self.tokenizer()?));
        }
        let longest = self.limits().map_or(0, |limits| limits.max_seq_len);
        let max_tokens = params.max_tokens.unwrap_or(longest.saturating_sub(prompt));
        Ok(Stopping { max_tokens, min_tokens: params.min_tokens, end_ids })
    }

    fn require_tokenizer(&self) -> Result<&Tokenizer, ServeError> {
        Ok(self.tokenizer()?.ok_or_else(TextError::no_tokenizer)?)
    }

    fn decoder(&mut self, reason: &str) -> Result<&mut Decoder, ServeError> {
        let error = self.kind(reason);
        match &mut self.engine {
            Engine::Decoder(decoder) => Ok(decoder),
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
            Engine::Decoder(decoder) => decoder.executable(),
            Engine::Encoder(embedder) => embedder.executable(),
            Engine::Graph(executable, _) => executable,
        }
    }
}

/// The longest sequence: what the model is compiled for, or less if asked.
fn max_seq_len(info: &ModelInfo, asked: Option<usize>) -> Result<usize, ServeError> {
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
