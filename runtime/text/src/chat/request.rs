//! What a template is rendered with, and continuing a message that is not finished.

use std::time::SystemTime;

use serde_json::{Map, Value};

use crate::error::TextError;

/// Appended to the message to continue, found again in the output. The space at its end tells
/// whether the template trims messages.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names under which a message's reasoning is passed, the standard one first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation and what goes with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The messages, objects with `role` and `content` and whatever else the template reads.
    pub messages: Vec<Value>,
    /// JSON schemas of the tools that the model may call; `None` is not the same as none.
    pub tools: Option<Vec<Value>>,
    /// Documents for retrieval-augmented templates, objects with `title` and `text`.
    pub documents: Option<Vec<Value>>,
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// End within the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables: special tokens under their names ([`SpecialTokens::variables`]), then the
    /// request's own, such as `enable_thinking`.
    ///
    /// [`SpecialTokens::variables`]: crate::SpecialTokens::variables
    pub variables: Map<String, Value>,
    /// The time for templates that tell the model the date; the machine's clock if `None`.
    pub now: Option<SystemTime>,
}

/// Messages as the template sees them.
pub(super) struct Prepared {
    pub(super) messages: Vec<Value>,
    /// The text to continue, if any.
    continued: Option<String>,
}

impl ChatRequest {
    pub(super) fn prepare(&self, template: &str) -> Result<Prepared, TextError> {
        if self.add_generation_prompt && self.continue_final_message {
            return Err(refuse(
                "add_generation_prompt starts a new message and continue_final_message goes on with \
                 the last one; ask for one of them",
            ));
        }
        let mut messages = Vec::with_capacity(self.messages.len());
        for (i, message) in self.messages.iter().enumerate() {
            let Value::Object(message) = message else {
                return Err(refuse(format!("message {i} is not an object with role and content")));
            };
            messages.push(Value::Object(with_reasoning(message)));
        }
        let continued = match messages.last_mut() {
            Some(last) if self.continue_final_message => Some(tag(last)?),
            None if self.continue_final_message => {
                return Err(refuse("there is no message to continue"));
            }
            _ => None,
        };
        if continued.is_some() && !template.contains("content") {
            return Err(refuse(
                "the template does not read `content`, so there is nothing to continue",
            ));
        }
        Ok(Prepared { messages, continued })
    }
}

impl Prepared {
    /// Ends the output where the continued message ends.
    pub(super) fn cut(self, mut rendered: String) -> Result<String, TextError> {
        let Some(text) = self.continued else { return Ok(rendered) };
        let at = rendered.rfind(CONTINUE_TAG.trim_end()).filter(|_| rendered.contains(text.trim()));
        let Some(at) = at else {
            return Err(refuse("the template leaves out the message to continue, or alters it"));
        };
        let keeps_spaces = rendered[at..].starts_with(CONTINUE_TAG);
        rendered.truncate(at);
        if !keeps_spaces {
            rendered.truncate(rendered.trim_end().len());
        }
        Ok(rendered)
    }
}

/// Fills `reasoning_content` from older names for it, and `thinking`, which some templates read.
fn with_reasoning(message: &Map<String, Value>) -> Map<String, Value> {
    let given = REASONING.iter().find_map(|&name| message.get(name).filter(|v| !v.is_null()));
    let Some(reasoning) = given else { return message.clone() };
    let mut out = Map::new();
    out.insert("thinking".to_owned(), reasoning.clone());
    out.extend(message.clone());
    out.insert(REASONING[0].to_owned(), reasoning.clone());
    out
}

/// Appends the tag to the message's text, or to the last of its text parts; gives the text.
fn tag(message: &mut Value) -> Result<String, TextError> {
    let text = match message.get_mut("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => {
            parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            })
        }
        _ => None,
    };
    let Some(text) = text else { return Err(refuse("the final message has no text to continue")) };
    let continued = text.clone();
    text.push_str(CONTINUE_TAG);
    Ok(continued)
}

fn refuse(reason: impl Into<String>) -> TextError {
    TextError::Conversation { reason: reason.into() }
}
