//! `POST /v1/completions`: text that goes on after prompts.

mod answer;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use ir::ModelKind;
use serde_json::{Map, Value};

use super::{
    App, aside,
    body::Checked,
    error::ApiError,
    fields::{self, Field, Fields, Kind, Table, field, required},
    generation::{Events, Outputs, fit, read_bad_words},
    inputs::{self, INPUTS},
    params::{MAX_LOGPROBS, Params, SHARED},
    route::respond_json,
    sse,
    structured::STRUCTURED,
};

use answer::Answer;

/// New tokens where the request says nothing.
const MAX_TOKENS: usize = 16;
/// The fields.
pub(super) const TABLE: Table = &[OWN, SHARED, STRUCTURED];

const OWN: &[Field] = &[
    required(
        "prompt",
        INPUTS,
        "What to go on after: a text, a list of token ids, or a list of either.",
    ),
    field("max_tokens", Kind::at_least(0), "New tokens at most; 16 by default."),
    field("echo", Kind::Bool, "Whether the answer begins with the prompt."),
    field(
        "logprobs",
        Kind::Integer { from: 0, to: MAX_LOGPROBS },
        "Whether to tell the log-probabilities of tokens, and how many of the most likely ones \
         with each.",
    ),
    field(
        "add_special_tokens",
        Kind::Bool,
        "Whether the tokenizer adds what the model expects before a text; true by default.",
    ),
    field("suffix", Kind::Only { values: &[], why: "nothing is inserted into texts" }, ""),
    field(
        "best_of",
        Kind::Only { values: &["1"], why: "answers are not compared; ask for `n`" },
        "",
    ),
];

/// A prompt, and its text where the answer begins with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Prompt {
    ids: Vec<u32>,
    text: String,
}

/// What a request asks for.
pub(super) struct Call {
    model: String,
    params: Params,
    prompts: Vec<Prompt>,
    is_echo: bool,
    logprobs: Option<usize>,
}

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    app.require(ModelKind::Decoder, "complete text")?;
    let call = Call::read(&app, app.read(request, TABLE).await?).await?;
    let requests = call.requests(&app).await?;
    let prompts = requests.iter().map(|request| request.prompt.len()).sum();
    let stream = call.params.stream;
    let n = call.params.request.n;
    let events = Events::submit(&app, requests)?;
    let answer = Answer::new(&app, call, prompts)?;
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
        let mut params = Params::read(fields, &app.engine().bundle().generation, &mut problems);
        problems.into_result()?;
        let is_echo = fields.bool("echo").unwrap_or(false);
        let logprobs = fields.count("logprobs");
        let skip_special = params.request.params.skip_special_tokens;
        let size = body.get("prompt").map_or(0, inputs::weight);
        let asked = fields.count("max_tokens");
        read_bad_words(app, &mut params)?;
        let context = app.clone();
        let prompts =
            aside(size, move || read_prompts(&context, &body, is_echo, skip_special)).await?;
        let ids: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
        params.max_tokens = fit(app, &params, &ids, asked, Some(MAX_TOKENS), "prompt")?;
        Ok(Call { model, params, prompts, is_echo, logprobs })
    }

    /// The engine's requests, one for each prompt.
    async fn requests(&self, app: &Arc<App>) -> Result<Vec<crate::engine::Request>, ApiError> {
        let mut shared = self.params.request.clone();
        shared.top_logprobs = self.logprobs.unwrap_or(0);
        if self.is_echo && self.logprobs.is_some() {
            shared.prompt_logprobs = shared.prompt_logprobs.max(self.logprobs);
        }
        app.constrain(&mut shared, self.params.structure.clone(), None).await?;
        let one = |(prompt, max_tokens): (&Prompt, &usize)| {
            let mut request = shared.clone();
            request.prompt.clone_from(&prompt.ids);
            request.params.max_tokens = Some(*max_tokens);
            request
        };
        Ok(self.prompts.iter().zip(&self.params.max_tokens).map(one).collect())
    }
}

fn read_prompts(
    app: &App,
    body: &Map<String, Value>,
    is_echo: bool,
    skip_special: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let add_special = Fields(body).bool("add_special_tokens").unwrap_or(true);
    let one = |value: &Value| -> Result<Prompt, ApiError> {
        if let Value::String(text) = value {
            let ids = app.tokenizer()?.encode(text, add_special)?;
            return Ok(Prompt { ids, text: text.clone() });
        }
        let ids = fields::tokens(value).unwrap_or_default();
        let text = match app.engine().tokenizer().filter(|_| is_echo) {
            Some(tokenizer) => tokenizer.decode(&ids, skip_special)?,
            None => String::new(),
        };
        Ok(Prompt { ids, text })
    };
    inputs::read(body.get("prompt"), one)
}
