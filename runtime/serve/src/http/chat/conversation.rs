//! From a conversation to a prompt, as the chat template writes it.

use std::sync::Arc;

use serde_json::{Map, Value};
use text::ChatRequest;

use super::{Tools, messages};
use crate::http::{
    App, aside,
    error::ApiError,
    fields::{Field, Fields, Kind, Problems, field},
};

/// How the conversation becomes a prompt.
pub(in crate::http) const RENDERING: &[Field] = &[
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

/// A conversation that is ready to be rendered.
pub(in crate::http) struct Conversation {
    template: Arc<text::ChatTemplate>,
    request: ChatRequest,
    add_special: bool,
}

impl Conversation {
    /// Reads messages and what is rendered with them, of a request or of `/tokenize`.
    ///
    /// # Errors
    /// 400 without a template.
    pub(in crate::http) fn read(
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

    /// Whether the template is told that the model is not to reason.
    pub(super) fn is_not_to_reason(&self) -> bool {
        self.request.variables.get("enable_thinking") == Some(&Value::Bool(false))
    }

    /// The prompt.
    ///
    /// # Errors
    /// 400 if the template refuses the conversation.
    pub(in crate::http) async fn tokens(self, app: &App) -> Result<Vec<u32>, ApiError> {
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
