//! Conversations as the text that a model sees, and what of it the assistant wrote.
//!
//! A template with `{% generation %}` blocks says what to learn. Of others it is found out: what
//! the template writes for the messages before an assistant's turn, with the beginning of that
//! turn, is what the model is given, and what it adds with the turn is what the model is to say.
//! That holds if each is a prefix of the next. Some templates write earlier turns otherwise once
//! there are later ones (reasoning is left out); their conversations are refused rather than
//! learned in a form that the model never meets.
//!
//! A turn ends with its end-of-turn token; white space behind that is the template's.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};
use text::{ChatRequest, ChatTemplate, TextBundle, TextError, Tokenizer};

use super::error::DataError;

/// What templates that tell the date tell, so that tokens are the same on any day.
const DATE: Duration = Duration::from_secs(1_735_732_800);

/// The templates of a model.
pub(super) struct Chat {
    plain: ChatTemplate,
    with_tools: ChatTemplate,
    variables: Map<String, Value>,
    /// Special tokens as text.
    special: Vec<String>,
}

/// A conversation as text, with the places to learn.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) learned: Vec<Range<usize>>,
}

impl Chat {
    /// # Errors
    /// [`DataError::Model`] if the model has no chat template, [`DataError::Text`] if it does not
    /// parse.
    pub(super) fn new(bundle: &TextBundle, tokenizer: &Tokenizer) -> Result<Chat, DataError> {
        let template = |has_tools| bundle.chat_template(has_tools);
        let (Some(plain), Some(with_tools)) = (template(false)?, template(true)?) else {
            let reason = "the model has no chat template, and `data.format` is \"chat\"; put a \
                          chat_template.jinja into its folder";
            return Err(DataError::Model(reason.to_owned()));
        };
        let ids = tokenizer.special_ids().iter();
        let special = ids.filter_map(|id| tokenizer.id_to_token(*id)).filter(|t| !t.is_empty());
        let variables = bundle.special_tokens.variables();
        Ok(Chat { plain, with_tools, variables, special: special.collect() })
    }

    /// Writes the conversation of a record: its messages, `tools` and `chat_template_kwargs`.
    ///
    /// # Errors
    /// Why it cannot be learned, as the rest of a sentence about the record.
    pub(super) fn render(
        &self,
        column: &str,
        fields: &Map<String, Value>,
    ) -> Result<Rendered, String> {
        let request = self.request(column, fields)?;
        let has_tools = request.tools.is_some();
        let template = if has_tools { &self.with_tools } else { &self.plain };
        let is_assistant = |message: &Value| role(message) == Some("assistant");
        if !request.messages.iter().any(is_assistant) {
            return Err(format!("has no assistant's turn in `{column}`: nothing to learn"));
        }
        let (text, spans) = if template.has_generation_spans() {
            template.render_generation_spans(&request).map_err(told)?
        } else {
            by_prefixes(template, &request)?
        };
        let learned = spans.into_iter().map(|span| self.turn(&text, span)).collect();
        Ok(Rendered { text, learned })
    }

    fn request(&self, column: &str, fields: &Map<String, Value>) -> Result<ChatRequest, String> {
        let messages = match fields.get(column) {
            Some(Value::Array(messages)) if !messages.is_empty() => messages.clone(),
            Some(Value::Array(_)) => return Err(format!("has no messages in `{column}`")),
            _ => return Err(format!("has in `{column}` no list of messages")),
        };
        if let Some(i) = messages.iter().position(|message| role(message).is_none()) {
            return Err(format!("has in `{column}[{i}]` no object with a `role`"));
        }
        let tools = match fields.get("tools") {
            None | Some(Value::Null) => None,
            Some(Value::Array(tools)) if tools.is_empty() => None,
            Some(Value::Array(tools)) => Some(tools.clone()),
            // Tables often hold schemas as text: their types differ from row to row.
            Some(Value::String(json)) => match serde_json::from_str(json) {
                Ok(tools) => Some(tools),
                Err(error) => return Err(format!("has in `tools` no list of JSON: {error}")),
            },
            Some(_) => return Err("has in `tools` no list".to_owned()),
        };
        let mut variables = self.variables.clone();
        match fields.get("chat_template_kwargs") {
            None | Some(Value::Null) => {}
            Some(Value::Object(kwargs)) => variables.extend(kwargs.clone()),
            Some(_) => return Err("has in `chat_template_kwargs` no object".to_owned()),
        }
        let now = Some(SystemTime::UNIX_EPOCH + DATE);
        Ok(ChatRequest { messages, tools, variables, now, ..ChatRequest::default() })
    }

    /// The part of a turn up to its end-of-turn token, if only white space stands behind it.
    fn turn(&self, text: &str, span: Range<usize>) -> Range<usize> {
        let end = span.start + text[span.clone()].trim_end().len();
        let ends_turn = self.special.iter().any(|token| text[span.start..end].ends_with(&**token));
        if ends_turn { span.start..end } else { span }
    }
}

/// The other columns that a conversation may have.
pub(super) const COLUMNS: [&str; 2] = ["tools", "chat_template_kwargs"];

fn role(message: &Value) -> Option<&str> {
    message.get("role")?.as_str()
}

fn told(error: TextError) -> String {
    match error {
        TextError::Refused { message } => {
            format!("is refused by the chat template: {message}")
        }
        other => format!("cannot be rendered: {other}"),
    }
}

/// What the template adds with every assistant's turn.
fn by_prefixes(
    template: &ChatTemplate,
    request: &ChatRequest,
) -> Result<(String, Vec<Range<usize>>), String> {
    let text = template.render(request).map_err(told)?;
    let mut spans = Vec::new();
    for (i, message) in request.messages.iter().enumerate() {
        if role(message) != Some("assistant") {
            continue;
        }
        let unstable = |what: &str| {
            format!(
                "cannot be learned: the chat template {what}, so it does not show which text is \
                 the assistant's; mark that text in the template by {{% generation %}} .. \
                 {{% endgeneration %}}"
            )
        };
        let upto = |n: usize, add_generation_prompt| ChatRequest {
            messages: request.messages[..n].to_vec(),
            add_generation_prompt,
            ..request.clone()
        };
        let before = template.render(&upto(i, true)).map_err(|error| {
            unstable(&format!("does not render the {i} messages before a turn ({error})"))
        })?;
        let with = template.render(&upto(i + 1, false)).map_err(|error| {
            unstable(&format!("does not render the first {} messages alone ({error})", i + 1))
        })?;
        if !text.starts_with(&with) {
            let reason = format!("writes message {i} otherwise once there are later ones");
            return Err(unstable(&reason));
        }
        if !with.starts_with(&before) {
            let reason = format!("begins message {i} otherwise than it asks for it");
            return Err(unstable(&reason));
        }
        spans.push(before.len()..with.len());
    }
    Ok((text, spans))
}

#[cfg(test)]
mod tests;
