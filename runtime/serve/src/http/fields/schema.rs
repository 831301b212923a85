//! Kinds as JSON Schema (2020-12), for the OpenAPI document.

use serde_json::{Map, Value, json};

use super::{Kind, Table};

/// The schema of an object with the fields of a table. Ids of tokens are below `vocab_size`.
pub(crate) fn object_schema(table: Table, vocab_size: usize) -> Value {
    let rows = || table.iter().copied().flatten();
    let properties: Map<String, Value> = rows()
        .map(|row| {
            let mut schema = schema(&row.kind, vocab_size);
            if !row.is_required {
                schema = nullable(schema);
            }
            if !row.about.is_empty() {
                schema["description"] = row.about.into();
            }
            (row.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<&str> = rows().filter(|row| row.is_required).map(|row| row.name).collect();
    let mut object =
        json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

fn schema(kind: &Kind, vocab_size: usize) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Integer { from, to: i64::MAX } => json!({"type": "integer", "minimum": from}),
        Kind::Integer { from, to } => json!({"type": "integer", "minimum": from, "maximum": to}),
        Kind::Number { from, to, is_open } => {
            let low = if *is_open { "exclusiveMinimum" } else { "minimum" };
            let mut number = json!({"type": "number", low: from});
            if to.is_finite() {
                number["maximum"] = json!(to);
            }
            number
        }
        Kind::Token => {
            json!({"type": "integer", "minimum": 0, "maximum": vocab_size.saturating_sub(1)})
        }
        Kind::Text => json!({"type": "string"}),
        Kind::Name => json!({"type": "string", "minLength": 1}),
        Kind::Choice(texts) => json!({"type": "string", "enum": texts}),
        Kind::Only { values, .. } => {
            let value = |json: &&str| serde_json::from_str::<Value>(json).unwrap_or_default();
            json!({"enum": values.iter().map(value).collect::<Vec<Value>>()})
        }
        Kind::List { of, from, to } => {
            let mut list = json!({"type": "array", "items": schema(of, vocab_size)});
            if *from > 0 {
                list["minItems"] = json!(from);
            }
            if *to < usize::MAX {
                list["maxItems"] = json!(to);
            }
            list
        }
        Kind::ByToken(of) => json!({
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": schema(of, vocab_size),
        }),
        Kind::Object(table) => object_schema(table, vocab_size),
        Kind::Tagged { by, of } => {
            let variant = |(tag, table): &(&str, Table)| {
                let mut object = object_schema(table, vocab_size);
                object["properties"][*by] = json!({"const": tag});
                object
            };
            json!({"oneOf": of.iter().map(variant).collect::<Vec<Value>>()})
        }
        Kind::AnyObject => json!({"type": "object"}),
        Kind::OneOf(kinds) => {
            let kinds = kinds.iter().map(|kind| schema(kind, vocab_size));
            json!({"anyOf": kinds.collect::<Vec<Value>>()})
        }
    }
}

/// The same, or `null`.
fn nullable(mut schema: Value) -> Value {
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.take(), "null"]);
    }
    for list in ["enum", "anyOf"] {
        if let Some(Value::Array(values)) = schema.get_mut(list) {
            let null = if list == "enum" { Value::Null } else { json!({"type": "null"}) };
            values.push(null);
            return schema;
        }
    }
    match schema.get("type") {
        Some(_) => schema,
        None => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}
