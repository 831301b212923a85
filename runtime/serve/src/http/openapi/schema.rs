//! Pieces of JSON Schema.

use serde_json::{Map, Value, json};

/// An object with these fields, and perhaps those.
pub(super) fn object(fields: &[(&str, Value)], further: &[(&str, Value)]) -> Value {
    let property = |(name, schema): &(&str, Value)| ((*name).to_owned(), schema.clone());
    let properties: Map<String, Value> = fields.iter().chain(further).map(property).collect();
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

pub(super) fn by_name(of: &Value) -> Value {
    json!({"type": "object", "additionalProperties": of})
}

pub(super) fn list(of: &Value) -> Value {
    json!({"type": "array", "items": of})
}

pub(super) fn nullable(schema: &Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

pub(super) fn number() -> Value {
    json!({"type": "number"})
}

pub(super) fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}
