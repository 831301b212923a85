//! What all requests share.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use ir::ModelKind;
use serde_json::Value;
use text::{
    ChatTemplate, GrammarCompiler, ReasoningFormat, TextError, TokenBytes, Tokenizer, ToolFormat,
};

use super::{ServerOptions, auth::Keys, error::ApiError, fields::Fields};
use crate::{ServeError, engine::Engine};

/// A server's state.
#[derive(Debug)]
pub(crate) struct App {
    engine: Engine,
    options: ServerOptions,
    keys: Keys,
    names: Vec<String>,
    templates: Templates,
    token_bytes: Option<Arc<TokenBytes>>,
    grammars: OnceLock<GrammarCompiler>,
    tool_format: Option<ToolFormat>,
    reasoning_format: Option<ReasoningFormat>,
    started: u64,
    /// Makes ids that no other process makes.
    hasher: RandomState,
    next_id: AtomicU64,
    answered: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// The chat template, and the one for conversations with tools where that is another.
#[derive(Debug, Default)]
struct Templates {
    usual: Option<Arc<ChatTemplate>>,
    tools: Option<Arc<ChatTemplate>>,
}

impl App {
    pub(crate) fn new(engine: Engine, options: ServerOptions) -> Result<Arc<App>, ServeError> {
        if let Some(index) = options.api_keys.iter().position(|key| key.trim().is_empty()) {
            let reason = format!("number {index} is empty, and would open the server to everybody");
            return Err(ServeError::request("--api-key", reason));
        }
        let templates = match &options.chat_template {
            Some(source) => {
                let one = Arc::new(ChatTemplate::new("--chat-template", source)?);
                Templates { usual: Some(one.clone()), tools: Some(one) }
            }
            None => {
                let bundle = engine.bundle();
                let template = |has_tools| bundle.chat_template(has_tools);
                let (usual, tools) = (template(false)?, template(true)?);
                Templates { usual: usual.map(Arc::new), tools: tools.map(Arc::new) }
            }
        };
        let mut names = options.served_model_names.clone();
        if names.is_empty() {
            names.push(engine.info().architecture.clone());
        }
        let source = templates.tools.as_ref().map_or("", |template| template.source());
        let tool_format = options
            .tool_format
            .or_else(|| ToolFormat::detect(source, engine.tokenizer().map(|t| &**t)));
        let source = templates.usual.as_ref().map_or("", |template| template.source());
        let reasoning_format = options.reasoning_format.or_else(|| ReasoningFormat::detect(source));
        let token_bytes = engine.tokenizer().map(|t| Arc::new(TokenBytes::new(t)));
        Ok(Arc::new(App {
            keys: Keys::new(&options.api_keys),
            engine,
            options,
            names,
            templates,
            token_bytes,
            grammars: OnceLock::new(),
            tool_format,
            reasoning_format,
            started: unix_seconds(),
            hasher: RandomState::new(),
            next_id: AtomicU64::new(0),
            answered: Mutex::default(),
        }))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn options(&self) -> &ServerOptions {
        &self.options
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The model's names, at least one.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// When the server started, in seconds since 1970.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    pub(crate) fn vocab_size(&self) -> usize {
        usize::try_from(self.engine.info().vocab_size).unwrap_or(usize::MAX)
    }

    /// The longest sequence: what the model takes and its memory holds.
    pub(crate) fn max_seq_len(&self) -> usize {
        match self.engine.limits() {
            Some(limits) => limits.longest(),
            None => usize::try_from(self.engine.info().max_seq_len).unwrap_or(usize::MAX),
        }
    }

    pub(crate) fn token_bytes(&self) -> Option<Arc<TokenBytes>> {
        self.token_bytes.clone()
    }

    /// What compiles structures for the model's vocabulary.
    ///
    /// # Errors
    /// 400 if the tokenizer's tokens do not stand for bytes, or there is none.
    pub(crate) fn grammars(&self) -> Result<&GrammarCompiler, ApiError> {
        if self.grammars.get().is_none() {
            let (tokenizer, eos_ids) = (self.tokenizer()?, self.engine.eos_ids());
            let built = GrammarCompiler::new(&tokenizer, self.vocab_size(), eos_ids)?;
            return Ok(self.grammars.get_or_init(|| built));
        }
        self.grammars.get().ok_or_else(|| ApiError::internal("structures cannot be compiled"))
    }

    /// How the model writes calls, if that is known.
    pub(crate) fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// When the model reasons, if it does.
    pub(crate) fn reasoning_format(&self) -> Option<ReasoningFormat> {
        self.reasoning_format
    }

    /// The chat template.
    ///
    /// # Errors
    /// 400 if the model has none.
    pub(crate) fn template(&self, has_tools: bool) -> Result<Arc<ChatTemplate>, ApiError> {
        let Templates { usual, tools } = &self.templates;
        let template = if has_tools { tools.as_ref().or(usual.as_ref()) } else { usual.as_ref() };
        template.cloned().ok_or_else(|| {
            ApiError::wrong_kind(
                "the model has no chat template, so it takes no messages; use `/v1/completions`, \
                 or start the server with a chat template",
            )
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// 400 if the model has none.
    pub(crate) fn tokenizer(&self) -> Result<Arc<Tokenizer>, ApiError> {
        let tokenizer = self.engine.tokenizer().cloned();
        tokenizer.ok_or_else(|| TextError::no_tokenizer().into())
    }

    /// The name under which the request asks for the model.
    ///
    /// # Errors
    /// 404 if it is not one of this model's.
    pub(crate) fn model(&self, fields: Fields<'_>) -> Result<String, ApiError> {
        match fields.text("model") {
            None => Ok(self.names[0].clone()),
            Some(name) if self.names.iter().any(|served| served == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::no_model(name, &self.names)),
        }
    }

    /// Refuses what the model is not made for.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn require(&self, kind: ModelKind, does: &str) -> Result<(), ApiError> {
        let info = self.engine.info();
        if info.kind == kind {
            return Ok(());
        }
        let (is, route) = match info.kind {
            ModelKind::Decoder => ("a language model", "/v1/completions"),
            ModelKind::Encoder => ("a model of embeddings", "/v1/embeddings"),
            ModelKind::Graph => ("a graph", "no route"),
        };
        let name = &info.architecture;
        Err(ApiError::wrong_kind(format!(
            "the model ({name}) does not {does}: it is {is}, for {route}"
        )))
    }

    /// An id that answers have.
    pub(crate) fn id(&self, prefix: &str) -> String {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let half = |salt: u64| {
            let mut hasher = self.hasher.build_hasher();
            hasher.write_u64(number);
            hasher.write_u64(salt);
            hasher.finish()
        };
        format!("{prefix}-{:016x}{:016x}", half(0), half(1))
    }

    /// Counts an answer.
    pub(crate) fn count(&self, route: &'static str, status: u16) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        *answered.entry((route, status)).or_default() += 1;
    }

    /// Answers so far, by route and status.
    pub(crate) fn answered(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// An answer of JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, ApiError> {
    serde_json::to_string(value).map_err(|e| ApiError::internal(e.to_string()))
}

/// A number that JSON has: impossible tokens have the least that clients expect.
pub(crate) fn finite(logprob: f32) -> Value {
    let logprob = if logprob.is_finite() { f64::from(logprob) } else { -9999.0 };
    logprob.into()
}
