//! JSON as model folders hold it: parsed whole, with repeated keys reported instead of dropped.

use std::{fmt, path::Path};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::FrontendError;

/// The largest JSON file that is read; configs take kilobytes, indices of shards a few megabytes.
const MAX_BYTES: u64 = 100 << 20;

/// Reads a JSON file whose top level is an object.
///
/// # Errors
/// The file cannot be read, is no JSON or no object, or repeats a key.
pub(crate) fn read_object(file: &Path) -> Result<Map<String, Value>, Vec<FrontendError>> {
    object(file, &read_bytes(file)?)
}

/// The bytes of a small file.
///
/// # Errors
/// The file cannot be read or is too large for what it is.
pub(crate) fn read_bytes(file: &Path) -> Result<Vec<u8>, Vec<FrontendError>> {
    let fail = |reason: String| vec![FrontendError::file(file, reason)];
    let meta = std::fs::metadata(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if !meta.is_file() {
        return Err(fail("is not a file".into()));
    }
    if meta.len() > MAX_BYTES {
        let have = meta.len();
        return Err(fail(format!("has {have} bytes, more than the {MAX_BYTES} that are read")));
    }
    std::fs::read(file).map_err(|e| fail(format!("cannot be read: {e}")))
}

/// Parses a JSON object.
///
/// # Errors
/// No JSON, no object, or a repeated key; `file` names it.
pub(crate) fn object(file: &Path, bytes: &[u8]) -> Result<Map<String, Value>, Vec<FrontendError>> {
    match value(file, bytes)? {
        Value::Object(map) => Ok(map),
        other => Err(vec![FrontendError::file(
            file,
            format!("holds {} where a JSON object is expected", kind(&other)),
        )]),
    }
}

/// Parses any JSON value.
///
/// # Errors
/// No JSON, or a repeated key; `file` names it.
pub(crate) fn value(file: &Path, bytes: &[u8]) -> Result<Value, Vec<FrontendError>> {
    let mut repeated = Vec::new();
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let parsed = Unique { path: "", repeated: &mut repeated }.deserialize(&mut de);
    let value = parsed
        .and_then(|v| de.end().map(|()| v))
        .map_err(|e| vec![FrontendError::file(file, format!("is not valid JSON: {e}"))])?;
    if repeated.is_empty() {
        return Ok(value);
    }
    Err(repeated.iter().map(|k| FrontendError::field(file, k, "occurs more than once")).collect())
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as it appears in a message: short, whatever the file holds.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}.. ({})", &text[..at], kind(value)),
        None => text,
    }
}

/// Deserializes a value and notes the paths of keys that occur twice in one object.
pub(crate) struct Unique<'a> {
    pub(crate) path: &'a str,
    pub(crate) repeated: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(v) =
            seq.next_element_seed(Unique { path: self.path, repeated: &mut *self.repeated })?
        {
            out.push(v);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let dot = if self.path.is_empty() { "" } else { "." };
            let path = format!("{}{dot}{key}", self.path);
            let value =
                map.next_value_seed(Unique { path: &path, repeated: &mut *self.repeated })?;
            if out.insert(key, value).is_some() {
                self.repeated.push(path);
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_named_wherever_they_are() {
        let text = br#"{"a": 1, "b": {"c": [{"d": 1, "d": 2}], "e": null}, "a": 3}"#;
        let errors = object(Path::new("c.json"), text).unwrap_err();
        let fields: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            fields,
            [
                "c.json: field `b.c.d` occurs more than once",
                "c.json: field `a` occurs more than once"
            ]
        );
    }

    #[test]
    fn what_is_no_object_says_what_it_is() {
        let of = |text: &str| object(Path::new("c"), text.as_bytes()).unwrap_err()[0].to_string();
        assert_eq!(of("[1]"), "c: holds a list where a JSON object is expected");
        assert!(of("{\"a\": 1").contains("is not valid JSON"), "{}", of("{\"a\": 1"));
        assert!(of("{} {}").contains("trailing"));
        assert!(of(&"[".repeat(100_000)).contains("recursion"));
    }
}
