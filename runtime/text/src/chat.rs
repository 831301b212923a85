//! Chat templates: the Jinja programs that write a conversation as the text a model was trained on.
//!
//! Renders as `apply_chat_template` of transformers 5 does: `trim_blocks` and `lstrip_blocks`, loop
//! controls, the methods of Python's `str` and `dict`, `raise_exception`, `strftime_now`, `tojson`
//! as `json.dumps` writes it, and `{% generation %}` blocks, whose text is part of the output.
//! Templates come from strangers: they have no files and no side effects, and a budget bounds what
//! they compute. Turning the text into ids is the tokenizer's work, without adding special tokens:
//! templates write those themselves.

mod generation;
mod json;
mod request;

use std::{error::Error as _, ops::Range, time::SystemTime};

use jiff::{Timestamp, Zoned, tz::TimeZone};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context, value::Serde};
use minijinja_contrib::pycompat;

use crate::error::TextError;

pub use request::ChatRequest;

/// What one rendering may cost, in the engine's units of an instruction or 64 bytes: room for some
/// hundred thousand messages, or 640 MB of text.
const FUEL: u64 = 10_000_000;

/// The name of the template with marks around generated text; no name of a file has the slash.
const MARKED: &str = "/marked";

/// A compiled chat template.
///
/// ```
/// # use brolly_text as text;
/// use serde_json::json;
///
/// let template = text::ChatTemplate::new("default", "\
/// {% for message in messages %}
/// <|{{ message.role }}|>{{ message.content.strip() }}{{ eos_token }}
/// {% endfor %}
/// {% if add_generation_prompt %}<|assistant|>{% endif %}")?;
/// let prompt = template.render(&text::ChatRequest {
///     messages: vec![json!({"role": "user", "content": " Hello! "})],
///     add_generation_prompt: true,
///     variables: [("eos_token".to_owned(), json!("</s>"))].into_iter().collect(),
///     ..Default::default()
/// })?;
/// assert_eq!(prompt, "<|user|>Hello!</s>\n<|assistant|>");
/// # Ok::<(), text::TextError>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    name: String,
    source: String,
    env: Environment<'static>,
}

impl ChatTemplate {
    /// Compiles a template; `name` is what errors call it.
    ///
    /// # Errors
    /// [`TextError::Template`] with the line if it does not parse.
    pub fn new(name: impl Into<String>, source: impl Into<String>) -> Result<Self, TextError> {
        let (name, source) = (name.into(), source.into());
        let mut env = environment().map_err(|error| template_error(&name, &error))?;
        env.add_template_owned(name.clone(), generation::as_scopes(&source))
            .map_err(|error| template_error(&name, &error))?;
        if let Some(marked) = generation::as_marked_scopes(&source) {
            env.add_template_owned(MARKED, marked)
                .map_err(|error| template_error(&name, &error))?;
        }
        Ok(Self { name, source, env })
    }

    /// The template's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes a conversation as a prompt.
    ///
    /// # Errors
    /// [`TextError::Refused`] if the template calls `raise_exception`, [`TextError::Template`] if
    /// it fails or exceeds its budget, [`TextError::Conversation`] if a message is not an object or
    /// there is no final message to continue.
    pub fn render(&self, request: &ChatRequest) -> Result<String, TextError> {
        self.render_as(&self.name, request)
    }

    /// Whether the template says by `{% generation %}` what the assistant writes.
    #[must_use]
    pub fn has_generation_spans(&self) -> bool {
        self.env.get_template(MARKED).is_ok()
    }

    /// As [`render`](Self::render), with the bytes that stand in `{% generation %}` blocks: those
    /// to learn from.
    ///
    /// # Errors
    /// As [`render`](Self::render); [`TextError::Conversation`] if the template has no such blocks,
    /// or a message holds U+FDD0 or U+FDD1.
    pub fn render_generation_spans(
        &self,
        request: &ChatRequest,
    ) -> Result<(String, Vec<Range<usize>>), TextError> {
        let refuse = |reason: &str| Err(TextError::Conversation { reason: reason.to_owned() });
        if !self.has_generation_spans() {
            return refuse("the template has no {% generation %} blocks");
        }
        let plain = self.render(request)?;
        if plain.contains(generation::MARKS) {
            return refuse("a message holds U+FDD0 or U+FDD1, which are no characters of text");
        }
        let (text, spans) = generation::spans(&self.render_as(MARKED, request)?);
        if text != plain {
            return refuse("the template alters the text of its {% generation %} blocks");
        }
        Ok((text, spans))
    }

    fn render_as(&self, name: &str, request: &ChatRequest) -> Result<String, TextError> {
        let prepared = request.prepare(&self.source)?;
        let now = Now(request.now);
        let variables = context! {
            strftime_now => Value::from_function(move |format: &str| now.strftime(format)),
            messages => Value::from(Serde(&prepared.messages)),
            tools => Value::from(Serde(&request.tools)),
            documents => Value::from(Serde(&request.documents)),
            add_generation_prompt => request.add_generation_prompt,
            ..Value::from(Serde(&request.variables))
        };
        let rendered = self
            .env
            .get_template(name)
            .and_then(|template| template.render(variables))
            .map_err(|error| self.failure(&error))?;
        prepared.cut(rendered)
    }

    fn failure(&self, error: &Error) -> TextError {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(Refusal(message)) = cause.downcast_ref() {
                return TextError::Refused { message: message.clone() };
            }
            source = cause.source();
        }
        template_error(&self.name, error)
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut syntax = minijinja::syntax::SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    let mut env = Environment::new();
    env.set_syntax(syntax.build()?);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(pycompat::unknown_method_callback);
    env.set_fuel(Some(FUEL));
    env.add_filter("tojson", json::tojson);
    env.add_function("raise_exception", raise_exception);
    Ok(env)
}

fn template_error(name: &str, error: &Error) -> TextError {
    let mut reason = error.to_string();
    if error.kind() == ErrorKind::OutOfFuel {
        reason.push_str("; the template computes without end, or the conversation is too long");
    }
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    TextError::Template { name: name.to_owned(), reason }
}

/// The message of a `raise_exception`, carried through the engine's own error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let refusal = Refusal(message.to_string());
    Err(Error::new(ErrorKind::InvalidOperation, "raised by the template").with_source(refusal))
}

/// The time that `strftime_now` formats, in the machine's time zone.
#[derive(Clone, Copy)]
struct Now(Option<SystemTime>);

impl Now {
    fn strftime(self, format: &str) -> Result<String, Error> {
        let now = self.0.unwrap_or_else(SystemTime::now);
        let text = Timestamp::try_from(now)
            .map(|timestamp| Zoned::new(timestamp, TimeZone::system()))
            .and_then(|zoned| jiff::fmt::strtime::format(format, &zoned));
        text.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    }
}

#[cfg(test)]
mod tests;
