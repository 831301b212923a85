//! Records as tokens.

use serde_json::{Map, Value};
use text::{TextBundle, TextError, Tokenizer};

use super::{
    chat::Chat,
    error::DataError,
    read::Record,
    token::{MAX_TOKENS, Token},
};
use crate::config::Format;

/// What becomes of a record.
#[derive(Debug, PartialEq)]
pub(super) enum Encoded {
    /// A document or a part of one.
    Tokens(Vec<Token>),
    /// An empty document: nothing to learn.
    Nothing,
    /// Something that cannot be used.
    Bad { number: u64, reason: String },
    /// An object without the field; those that it has.
    NoField { number: u64, fields: Vec<String> },
}

/// Turns records into tokens.
pub(super) struct Encoder<'a> {
    tokenizer: Tokenizer,
    column: &'a str,
    chat: Option<Chat>,
    /// Put before and after every document of text.
    around: (Vec<Token>, Vec<Token>),
}

impl<'a> Encoder<'a> {
    /// # Errors
    /// [`DataError::Text`] and [`DataError::Model`] if the model's folder has no tokenizer, no
    /// end-of-sequence token, or no chat template where there are conversations.
    pub(super) fn new(
        bundle: &TextBundle,
        format: Format,
        column: &'a str,
    ) -> Result<Encoder<'a>, DataError> {
        let tokenizer = bundle.tokenizer()?.ok_or_else(TextError::no_tokenizer)?;
        let (chat, around) = match format {
            Format::Chat => (Some(Chat::new(bundle, &tokenizer)?), Default::default()),
            Format::Text | Format::Tokens => (None, around(bundle, &tokenizer)?),
        };
        Ok(Encoder { tokenizer, column, chat, around })
    }

    pub(super) fn encode(&self, record: &Record) -> Encoded {
        match record {
            Record::Line { number, bytes } => match parse(bytes) {
                Ok(fields) => self.fields(*number, &fields),
                Err(reason) => Encoded::Bad { number: *number, reason },
            },
            Record::Row { number, fields } => self.fields(*number, fields),
            Record::Piece { number, text, is_first, is_last } => {
                self.text(*number, text, *is_first, *is_last)
            }
            Record::Bad { number, reason } => {
                Encoded::Bad { number: *number, reason: reason.clone() }
            }
        }
    }

    fn fields(&self, number: u64, fields: &Map<String, Value>) -> Encoded {
        let column = self.column;
        if fields.get(column).is_none() {
            return Encoded::NoField { number, fields: fields.keys().cloned().collect() };
        }
        if let Some(chat) = &self.chat {
            let tokens = self.conversation(chat, fields);
            return tokens.map_or_else(|reason| Encoded::Bad { number, reason }, Encoded::Tokens);
        }
        match &fields[column] {
            Value::String(text) => self.text(number, text, true, true),
            other => {
                let reason = format!("has in `{column}` {}, and a text is wanted", kind(other));
                Encoded::Bad { number, reason }
            }
        }
    }

    fn text(&self, number: u64, text: &str, is_first: bool, is_last: bool) -> Encoded {
        if text.is_empty() && is_first && is_last {
            return Encoded::Nothing;
        }
        let ids = self.tokenizer.encode(text, false).map_err(|error| error.to_string());
        let tokens =
            ids.and_then(|ids| ids.into_iter().map(checked).collect::<Result<Vec<_>, _>>());
        let tokens = match tokens {
            Ok(tokens) => tokens,
            Err(reason) => return Encoded::Bad { number, reason: format!("fails: {reason}") },
        };
        let (before, after) = &self.around;
        let before = before.iter().filter(|_| is_first);
        let after = after.iter().filter(|_| is_last);
        Encoded::Tokens(before.copied().chain(tokens).chain(after.copied()).collect())
    }

    fn conversation(&self, chat: &Chat, fields: &Map<String, Value>) -> Result<Vec<Token>, String> {
        let rendered = chat.render(self.column, fields)?;
        let (ids, offsets) = self
            .tokenizer
            .encode_with_offsets(&rendered.text)
            .map_err(|error| format!("fails: {error}"))?;
        let mut tokens = Vec::with_capacity(ids.len());
        let mut spans = rendered.learned.iter().peekable();
        for (id, offset) in ids.into_iter().zip(offsets) {
            while spans.next_if(|span| span.end <= offset.start).is_some() {}
            let is_learned = spans.peek().is_some_and(|span| span.contains(&offset.start));
            let token = checked(id)?;
            tokens.push(if is_learned { token } else { token.ignored() });
        }
        // The first token has nothing before it to be told from.
        if !tokens.iter().skip(1).any(|token| token.is_learned()) {
            return Err("has no token of the assistant's: nothing to learn".to_owned());
        }
        if let Some(last) = tokens.last_mut() {
            *last = last.last();
        }
        Ok(tokens)
    }
}

fn checked(id: u32) -> Result<Token, String> {
    let is_small = id < MAX_TOKENS;
    is_small.then(|| Token::new(id)).ok_or_else(|| format!("the token {id} is not below 2^30"))
}

/// What the tokenizer puts around a text, and the end-of-sequence token if that is not among it.
fn around(
    bundle: &TextBundle,
    tokenizer: &Tokenizer,
) -> Result<(Vec<Token>, Vec<Token>), DataError> {
    let named = bundle.special_tokens.get("eos_token").and_then(|t| tokenizer.token_to_id(t));
    let eos = named.or_else(|| bundle.eos_ids(Some(tokenizer)).first().copied());
    let Some(eos) = eos else {
        let reason = "the model names no end-of-sequence token, and documents end with it; write \
                      `eos_token` into tokenizer_config.json";
        return Err(DataError::Model(reason.to_owned()));
    };
    // What stands around any text stands around this one.
    let (bare, full) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let start = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    let end = (start + bare.len()).min(full.len());
    let tokens = |ids: &[u32]| ids.iter().map(|id| checked(*id)).collect::<Result<Vec<_>, _>>();
    let before = tokens(&full[..start]).map_err(DataError::Model)?;
    let mut after = tokens(&full[end..]).map_err(DataError::Model)?;
    if after.last().map(|token| token.id()) != Some(eos) {
        after.push(checked(eos).map_err(DataError::Model)?);
    }
    if let Some(last) = after.last_mut() {
        *last = last.last();
    }
    Ok((before, after))
}

/// A line as an object.
fn parse(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8 from byte {} on", error.valid_up_to()))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(format!("is {}, and an object is wanted", kind(&other))),
        Err(error) => {
            // Each line is parsed alone, so the parser's line is always the first.
            let reason = error.to_string().replace(" at line 1 column ", " at column ");
            Err(format!("is not JSON: {reason}"))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
