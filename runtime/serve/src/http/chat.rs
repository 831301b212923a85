//! `POST /v1/chat/completions`: the assistant's next message in a conversation.

mod answer;
mod messages;
mod splitter;
mod tools;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use ir::ModelKind;
use serde_json::{Map, Value};
use text::ChatRequest;

use super::{
    App, aside, body,
    error::ApiError,
    fields::{Field, Fields, Kind, Problems, Table, field, required},
    generation::{Events, Outputs, fit, read_bad_words},
    params::{MAX_LOGPROBS, Params, SHARED},
    route::respond_json,
    sse,
    structured::{Asked, STRUCTURED},
};

use answer::Answer;
pub(super) use messages::MESSAGE;
use splitter::Splitter;
pub(super) use tools::{TOOLS, Tools};

/// Tokens of a prompt that tell whether the model reasons already.
const PROMPT_END: usize = 16;

/// The fields.
pub(super) const TABLE: Table = &[OWN, RENDERING, TOOLS, SHARED, STRUCTURED];

const OWN: &[Field] = &[
    required("messages", Kind::List { of: &MESSAGE, from: 1, to: 65536 }, "The conversation."),
    field("max_completion_tokens", Kind::at_least(0), "New tokens at most."),
    field("max_tokens", Kind::at_least(0), "The older name of `max_completion_tokens`."),
    field("logprobs", Kind::Bool, "Whether to tell the log-probabilities of new tokens."),
    field(
        "top_logprobs",
        Kind::Integer { from: 0, to: MAX_LOGPROBS },
        "How many of the most likely tokens to tell with each; only with `logprobs`.",
    ),
    field(
        "reasoning_effort",
        Kind::Choice(&["none", "minimal", "low", "medium", "high", "xhigh"]),
        "How long to reason, for templates that read `reasoning_effort`; `none` also for those \
         that read `enable_thinking`.",
    ),
    field("modalities", Kind::Only { values: &["[\"text\"]"], why: "answers are text" }, ""),
    field("audio", Kind::Only { values: &[], why: "answers are text" }, ""),
    field("prediction", Kind::Only { values: &[], why: "predicted outputs are not used" }, ""),
    field(
        "web_search_options",
        Kind::Only { values: &[], why: "this server searches nothing" },
        "",
    ),
    field("store", Kind::Only { values: &["false"], why: "answers are not stored" }, ""),
    field(
        "metadata",
        Kind::Only { values: &["{}"], why: "it is for stored answers, and none are stored" },
        "",
    ),
    field(
        "verbosity",
        Kind::Only { values: &["\"medium\""], why: "the model has no such setting" },
        "",
    ),
    field(
        "service_tier",
        Kind::Only {
            values: &["\"auto\"", "\"default\""],
            why: "all requests are served alike; see `priority`",
        },
        "",
    ),
    field("safety_identifier", Kind::Text, "Whose request it is; changes nothing."),
    field(
        "prompt_cache_key",
        Kind::Text,
        "Helps to find cached prompts on servers of many machines; changes nothing.",
    ),
    field(
        "prompt_cache_retention",
        Kind::Only {
            values: &["\"in_memory\"", "\"in-memory\""],
            why: "prefixes are kept in memory alone",
        },
        "",
    ),
    field("echo", Kind::Only { values: &["false"], why: "answers are new messages" }, ""),
    field(
        "best_of",
        Kind::Only { values: &["1"], why: "answers are not compared; ask for `n`" },
        "",
    ),
];

/// How the conversation becomes a prompt.
pub(super) const RENDERING: &[Field] = &[
    field(
        "chat_template_kwargs",
        Kind::AnyObject,
        "Further variables of the chat template, such as `enable_thinking`.",
    ),
    field(
        "add_generation_prompt",
        Kind::Bool,
        "Whether the prompt ends with the beginning of the assistant's message; true by default.",
    ),
    field(
        "continue_final_message",
        Kind::Bool,
        "Whether the answer goes on with the last message.",
    ),
    field(
        "add_special_tokens",
        Kind::Bool,
        "Whether the tokenizer adds tokens before what the template wrote; false by default.",
    ),
    field(
        "documents",
        Kind::List { of: &Kind::AnyObject, from: 0, to: 1024 },
        "Documents for templates that read them.",
    ),
    field(
        "chat_template",
        Kind::Only { values: &[], why: "templates come from the server's side alone" },
        "",
    ),
];

/// What a request asks for.
pub(super) struct Call {
    model: String,
    params: Params,
    prompt: Vec<u32>,
    /// How many alternatives to tell with each token, if any is told.
    logprobs: Option<usize>,
    tools: Tools,
    /// What the whole text must be.
    structure: Option<Asked>,
    /// The prompt's end, which tells whether the model reasons already.
    prompt_end: String,
}

/// A conversation that is ready to be rendered.
pub(super) struct Conversation {
    template: Arc<text::ChatTemplate>,
    request: ChatRequest,
    add_special: bool,
}

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    app.require(ModelKind::Decoder, "chat")?;
    let body = body::read(request, app.options().max_body_bytes).await?;
    let call = Call::read(&app, &body).await?;
    let stream = call.params.stream;
    let n = call.params.request.n;
    let events = Events::submit(&app, vec![call.request(&app).await?])
        .map_err(|error| error.rename("prompt", "messages"))?;
    let answer = Answer::new(&app, call);
    if stream {
        return Ok(sse::stream(events, answer));
    }
    let outputs = Outputs::collect(events, n).await?;
    Ok(respond_json(answer.whole(outputs).to_string()))
}

impl Call {
    async fn read(app: &Arc<App>, body: &Map<String, Value>) -> Result<Call, ApiError> {
        let fields = Fields(body);
        let model = app.model(fields)?;
        let mut problems = Problems::new(app.vocab_size());
        problems.check_object(TABLE, body, "");
        let defaults = &app.engine().bundle().generation;
        let mut params = Params::read(fields, defaults, &mut problems);
        let tools = Tools::read(fields, &mut problems);
        if fields.get("top_logprobs").is_some() && fields.bool("logprobs") != Some(true) {
            problems.add("top_logprobs", "is told with `logprobs`, which is not true");
        }
        let (new, old) = (fields.count("max_completion_tokens"), fields.count("max_tokens"));
        if new.is_some() && old.is_some() && new != old {
            problems.add("max_tokens", "differs from `max_completion_tokens`; give one of them");
        }
        let conversation = Conversation::read(app, body, &tools, &mut problems);
        if params.structure.is_some() && tools.must_be_called() {
            problems.add("tool_choice", "asks for a call, and another field for other answers");
        }
        problems.into_result()?;
        let conversation = conversation?;
        // Where both are possible, the structure is of answers that call nothing.
        let structure = match &params.structure {
            Some(structure) => Some(structure.clone()),
            None => tools.structure(app)?.map(|structure| ("tools".to_owned(), structure)),
        };
        read_bad_words(app, &mut params)?;
        let prompt = conversation.tokens(app).await?;
        let asked = new.or(old);
        let prompts = std::slice::from_ref(&prompt);
        params.max_tokens = fit(app, &params, prompts, asked, defaults.max_new_tokens, "messages")?;
        let logprobs = fields.bool("logprobs").filter(|told| *told);
        let logprobs = logprobs.map(|_| fields.count("top_logprobs").unwrap_or(0));
        let end = &prompt[prompt.len().saturating_sub(PROMPT_END)..];
        let prompt_end = app.tokenizer()?.decode(end, false)?;
        Ok(Call { model, params, prompt, logprobs, tools, structure, prompt_end })
    }

    /// What divides the text of an answer. A structure that holds from the first token leaves
    /// nothing to reason in.
    fn splitter(&self, app: &App) -> Splitter {
        let is_bound = self.params.structure.is_some() || self.tools.must_be_called();
        let reasoning = app.reasoning_format().filter(|_| !is_bound);
        let has_calls = self.tools.are_called() && self.params.structure.is_none();
        let tools = app.tool_format().filter(|_| has_calls);
        Splitter::new(reasoning, tools, self.tools.is_single(), &self.prompt_end)
    }

    /// The engine's request.
    async fn request(&self, app: &Arc<App>) -> Result<crate::engine::Request, ApiError> {
        let mut request = self.params.request.clone();
        request.prompt.clone_from(&self.prompt);
        request.params.max_tokens = self.params.max_tokens.first().copied();
        request.top_logprobs = self.logprobs.unwrap_or(0);
        if self.tools.are_called()
            && let (Some(format), Some(tokenizer)) = (app.tool_format(), app.engine().tokenizer())
        {
            let is_special = |mark: &&str| {
                tokenizer.token_to_id(mark).is_some_and(|id| tokenizer.special_ids().contains(&id))
            };
            if format.marks().iter().any(is_special) {
                request.params.skip_special_tokens = false;
            }
        }
        app.constrain(&mut request, self.structure.clone()).await?;
        Ok(request)
    }
}

impl Conversation {
    /// Reads messages and what is rendered with them, of a request or of `/tokenize`.
    ///
    /// # Errors
    /// 400 without a template.
    pub(super) fn read(
        app: &App,
        body: &Map<String, Value>,
        tools: &Tools,
        problems: &mut Problems,
    ) -> Result<Conversation, ApiError> {
        let fields = Fields(body);
        let template = app.template(!tools.is_empty())?;
        let source = template.source();
        let list = fields.list("messages").unwrap_or_default();
        let goes_on = fields.bool("continue_final_message").unwrap_or(false);
        let begins = fields.bool("add_generation_prompt");
        if goes_on && begins == Some(true) {
            let reason = "begins a new message, and `continue_final_message` goes on with the last";
            problems.add("add_generation_prompt", reason);
        }
        let mut variables = app.engine().bundle().special_tokens.variables();
        effort(fields, source, &mut variables, problems);
        for (name, value) in fields.object("chat_template_kwargs").into_iter().flat_map(|f| f.0) {
            if ["messages", "tools", "documents", "add_generation_prompt"].contains(&name.as_str())
            {
                let reason = "is a field of the request itself";
                problems.add(format!("chat_template_kwargs.{name}"), reason);
            }
            variables.insert(name.clone(), value.clone());
        }
        let messages = messages::for_template(list, source, problems);
        let request = ChatRequest {
            messages,
            tools: tools.for_template(),
            documents: fields.list("documents").map(<[Value]>::to_vec),
            add_generation_prompt: begins.unwrap_or(!goes_on),
            continue_final_message: goes_on,
            variables,
            now: None,
        };
        let add_special = fields.bool("add_special_tokens").unwrap_or(false);
        Ok(Conversation { template, request, add_special })
    }

    /// The prompt.
    ///
    /// # Errors
    /// 400 if the template refuses the conversation.
    pub(super) async fn tokens(self, app: &App) -> Result<Vec<u32>, ApiError> {
        let tokenizer = app.tokenizer()?;
        let size = self.request.messages.iter().map(messages::weight).sum();
        aside(size, move || {
            let Conversation { template, request, add_special } = self;
            let text = template.render(&request)?;
            let tokens = tokenizer.encode(&text, add_special);
            tokens.map_err(|error| ApiError::from(error).rename("prompt", "messages"))
        })
        .await
    }
}

/// Tells the template how long to reason, where it can be told.
fn effort(
    fields: Fields<'_>,
    template: &str,
    variables: &mut Map<String, Value>,
    problems: &mut Problems,
) {
    let Some(effort) = fields.text("reasoning_effort") else { return };
    let reads_thinking = template.contains("enable_thinking");
    match effort {
        _ if template.contains("reasoning_effort") => {
            variables.insert("reasoning_effort".into(), effort.into());
        }
        "none" if reads_thinking => {
            variables.insert("enable_thinking".into(), false.into());
        }
        // What OpenAI takes where nothing is said.
        "medium" => {}
        _ => {
            let reason = format!("is {effort:?}, and the model's chat template does not read it");
            problems.add("reasoning_effort", reason);
        }
    }
}
