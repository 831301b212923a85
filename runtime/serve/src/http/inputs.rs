//! What a model reads, as completions and embeddings take it: a text, token ids, or a list of
//! either.

use serde_json::Value;

use super::{error::ApiError, fields::Kind};

/// Texts or lists of ids in one call.
const MAX: usize = 2048;

const TOKENS: Kind = Kind::List { of: &Kind::Token, from: 1, to: usize::MAX };

/// What the field may hold.
pub(super) const INPUTS: Kind = Kind::OneOf(&[
    Kind::Text,
    TOKENS,
    Kind::List { of: &Kind::Text, from: 1, to: MAX },
    Kind::List { of: &TOKENS, from: 1, to: MAX },
]);

/// How much there is to tokenize, about as many bytes.
pub(super) fn weight(inputs: &Value) -> usize {
    match inputs {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        _ => 1,
    }
}

/// Reads each text and each list of ids by itself.
///
/// # Errors
/// The first of `one`.
pub(super) fn read<T>(
    inputs: Option<&Value>,
    one: impl Fn(&Value) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    match inputs {
        Some(Value::Array(list)) if !list.iter().all(Value::is_number) => {
            list.iter().map(one).collect()
        }
        Some(input) => Ok(vec![one(input)?]),
        None => Ok(Vec::new()),
    }
}
