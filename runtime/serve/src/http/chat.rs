//! `POST /v1/chat/completions`: the assistant's next message in a conversation.

mod answer;
mod conversation;
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
use text::{FirstCall, ReasoningFormat, ReasoningParser, ToolFormat};

use super::{
    App,
    body::Checked,
    error::ApiError,
    fields::{Field, Fields, Kind, Table, field, required},
    generation::{Events, Outputs, fit, read_bad_words},
    params::{MAX_LOGPROBS, Params, SHARED},
    route::respond_json,
    sse,
    structured::{Asked, STRUCTURED},
};

use answer::Answer;
pub(super) use conversation::{Conversation, RENDERING};
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

/// What a request asks for.
pub(super) struct Call {
    model: String,
    params: Params,
    prompt: Vec<u32>,
    /// How many alternatives to tell with each token, if any is told.
    logprobs: Option<usize>,
    tools: Tools,
    /// What the answer must be.
    structure: Option<Asked>,
    /// How the model reasons, if it may, and the prompt's end, which tells whether it does already.
    reasoning: Option<(ReasoningFormat, String)>,
}

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    app.require(ModelKind::Decoder, "chat")?;
    let call = Call::read(&app, app.read(request, TABLE).await?).await?;
    let stream = call.params.stream;
    let n = call.params.request.n;
    let events = Events::submit(&app, vec![call.request(&app).await?])
        .map_err(|error| error.rename("prompt", "messages"))?;
    let answer = Answer::new(&app, call);
    if stream {
        return Ok(sse::stream(events, answer));
    }
    let outputs = Outputs::collect(events, n).await?;
    Ok(respond_json(answer.whole(&outputs).to_string()))
}

impl Call {
    async fn read(app: &Arc<App>, checked: Checked) -> Result<Call, ApiError> {
        let Checked { body, model, mut problems } = checked;
        let fields = Fields(&body);
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
        let conversation = Conversation::read(app, &body, &tools, &mut problems);
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
        // Not every template closes the reasoning of a model that is not to reason.
        let is_silent = structure.is_some() && conversation.is_not_to_reason();
        let prompt = conversation.tokens(app).await?;
        let asked = new.or(old);
        let prompts = std::slice::from_ref(&prompt);
        params.max_tokens = fit(app, &params, prompts, asked, defaults.max_new_tokens, "messages")?;
        let logprobs = fields.bool("logprobs").filter(|told| *told);
        let logprobs = logprobs.map(|_| fields.count("top_logprobs").unwrap_or(0));
        let end = &prompt[prompt.len().saturating_sub(PROMPT_END)..];
        let format = app.reasoning_format().filter(|_| !is_silent);
        let end = app.tokenizer()?.decode(end, false)?;
        let reasoning = format.map(|format| (format, end));
        Ok(Call { model, params, prompt, logprobs, tools, structure, reasoning })
    }

    /// What divides the text of an answer.
    fn splitter(&self, app: &App) -> Splitter {
        Splitter::new(self.reasoning_parser(), self.calls(app), self.tools.is_single())
    }

    fn reasoning_parser(&self) -> Option<ReasoningParser> {
        let (format, end) = self.reasoning.as_ref()?;
        Some(ReasoningParser::new(*format, end))
    }

    /// How calls in the answer are written, if there may be any.
    fn calls(&self, app: &App) -> Option<ToolFormat> {
        let has_calls = self.tools.are_called() && self.params.structure.is_none();
        app.tool_format().filter(|_| has_calls)
    }

    /// The engine's request.
    async fn request(&self, app: &Arc<App>) -> Result<crate::engine::Request, ApiError> {
        let mut request = self.params.request.clone();
        request.prompt.clone_from(&self.prompt);
        request.params.max_tokens = self.params.max_tokens.first().copied();
        request.top_logprobs = self.logprobs.unwrap_or(0);
        let mut marks: Vec<&str> = Vec::new();
        if self.tools.are_called() {
            marks.extend(app.tool_format().into_iter().flat_map(ToolFormat::marks));
        }
        marks.extend(self.reasoning.iter().flat_map(|(format, _)| format.marks()));
        let is_special = |mark: &&str| {
            app.engine().tokenizer().is_some_and(|tokenizer| {
                let id = tokenizer.token_to_id(mark);
                id.is_some_and(|id| tokenizer.special_ids().contains(&id))
            })
        };
        if marks.iter().any(is_special) {
            request.params.skip_special_tokens = false;
        }
        if self.tools.is_single()
            && let Some(format) = self.calls(app)
        {
            request.first_call = Some(FirstCall::new(self.reasoning_parser(), format));
        }
        app.constrain(&mut request, self.structure.clone(), self.reasoning.clone()).await?;
        Ok(request)
    }
}
