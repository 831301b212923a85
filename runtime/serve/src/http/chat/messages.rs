//! Messages: what they may hold, and how chat templates expect them.

use serde_json::{Map, Value, json};

use crate::http::fields::{Field, Fields, Kind, Problems, Table, field, required};

const PART: Table = &[&[required("type", Kind::Text, ""), required("text", Kind::Text, "")]];
const REFUSAL: Table = &[&[required("type", Kind::Text, ""), required("refusal", Kind::Text, "")]];

const TEXT: Kind = Kind::OneOf(&[
    Kind::Text,
    Kind::List { of: &Kind::Tagged { by: "type", of: &[("text", PART)] }, from: 1, to: 65536 },
]);
const TEXT_OR_REFUSAL: Kind = Kind::OneOf(&[
    Kind::Text,
    Kind::List {
        of: &Kind::Tagged { by: "type", of: &[("text", PART), ("refusal", REFUSAL)] },
        from: 1,
        to: 65536,
    },
]);

const ROLE: Field = required("role", Kind::Text, "");
const NAME: Field = field("name", Kind::Text, "Who of several speaks.");

const SPOKEN: Table = &[&[ROLE, required("content", TEXT, ""), NAME]];
const TOOL: Table = &[&[
    ROLE,
    required("content", TEXT, "What the tool returned."),
    required("tool_call_id", Kind::Text, "The call that it answers."),
    NAME,
]];
const ASSISTANT: Table = &[&[
    ROLE,
    field("content", TEXT_OR_REFUSAL, ""),
    NAME,
    field("refusal", Kind::Text, ""),
    field("reasoning_content", Kind::Text, "What was thought before."),
    field("reasoning", Kind::Text, "The same under another name."),
    field("tool_calls", Kind::List { of: &CALL, from: 0, to: 128 }, ""),
    field("annotations", Kind::Only { values: &["[]"], why: "this server makes none" }, ""),
    field("audio", Kind::Only { values: &[], why: "messages are text" }, ""),
    field("function_call", Kind::Only { values: &[], why: "use `tool_calls`" }, ""),
]];
const CALL: Kind = Kind::Tagged {
    by: "type",
    of: &[(
        "function",
        &[&[
            required("type", Kind::Text, ""),
            required("id", Kind::Text, ""),
            field("index", Kind::at_least(0), ""),
            required(
                "function",
                Kind::Object(&[&[
                    required("name", Kind::Name, ""),
                    required("arguments", Kind::Text, "JSON."),
                ]]),
                "",
            ),
        ]],
    )],
};

/// A message by its role.
pub(in crate::http) const MESSAGE: Kind = Kind::Tagged {
    by: "role",
    of: &[
        ("system", SPOKEN),
        ("developer", SPOKEN),
        ("user", SPOKEN),
        ("assistant", ASSISTANT),
        ("tool", TOOL),
    ],
};

/// Messages as templates expect them: developers are the system, arguments of calls are objects,
/// and parts are one text unless the template goes through parts itself.
pub(super) fn for_template(
    messages: &[Value],
    template: &str,
    problems: &mut Problems,
) -> Vec<Value> {
    let keeps_parts = reads_parts(template);
    let mut out = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let Value::Object(message) = message else { continue };
        let fields = Fields(message);
        let mut given: Map<String, Value> = message
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let calls = fields.list("tool_calls").unwrap_or_default();
        if fields.text("role") == Some("developer") {
            given.insert("role".into(), "system".into());
        }
        let content = fields.get("content").or_else(|| fields.get("refusal"));
        let is_assistant = fields.text("role") == Some("assistant");
        if is_assistant && content.is_none() && calls.is_empty() {
            let reason = "is missing, and there are no `tool_calls`";
            problems.add(format!("messages[{index}].content"), reason);
        }
        if let Some(content) = content {
            given.insert("content".into(), shaped(content, keeps_parts));
        }
        for name in ["refusal", "annotations"] {
            given.remove(name);
        }
        if calls.is_empty() {
            given.remove("tool_calls");
        } else {
            given.insert("tool_calls".into(), read_calls(calls, index, problems));
        }
        out.push(Value::Object(given));
    }
    out
}

/// Bytes of text in a message.
pub(super) fn weight(message: &Value) -> usize {
    match message {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(weight).sum(),
        Value::Object(map) => map.values().map(weight).sum(),
        _ => 1,
    }
}

fn shaped(content: &Value, keeps_parts: bool) -> Value {
    match content {
        Value::String(text) if keeps_parts => json!([{"type": "text", "text": text}]),
        Value::Array(parts) if !keeps_parts => {
            let text = |part: &Value| {
                let text = part.get("text").or_else(|| part.get("refusal"));
                text.and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            parts.iter().map(text).collect::<Vec<String>>().join("\n").into()
        }
        content => content.clone(),
    }
}

fn read_calls(calls: &[Value], message: usize, problems: &mut Problems) -> Value {
    let mut calls = calls.to_vec();
    for (index, call) in calls.iter_mut().enumerate() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let Some(text) = arguments.as_str() else { continue };
        // Models call functions without parameters with nothing.
        let text = if text.trim().is_empty() { "{}" } else { text };
        match serde_json::from_str::<Value>(text) {
            Ok(object @ Value::Object(_)) => *arguments = object,
            _ => {
                let path = format!("messages[{message}].tool_calls[{index}].function.arguments");
                problems.add(path, "is not the JSON of an object");
            }
        }
    }
    calls.into()
}

/// Whether a template goes through the parts of a message and takes no text in their place.
fn reads_parts(template: &str) -> bool {
    let content = ["message['content']", "message[\"content\"]", "message.content"];
    let loops = template.split("{%").skip(1).any(|tag| {
        let tag = tag.split("%}").next().unwrap_or(tag).trim_start_matches(['-', '+']);
        let mut words = tag.split_whitespace();
        let source = words.by_ref().skip_while(|word| *word != "in").nth(1);
        tag.trim_start().starts_with("for ") && source.is_some_and(|s| content.contains(&s))
    });
    loops && !template.contains("is string")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(messages: &Value, template: &str) -> Result<Vec<Value>, String> {
        let mut problems = Problems::new(50);
        let list = Kind::List { of: &MESSAGE, from: 1, to: 9 };
        problems.check(&list, messages, "messages");
        let shaped = for_template(messages.as_array().unwrap(), template, &mut problems);
        problems.into_result().map_err(|error| error.param.unwrap())?;
        Ok(shaped)
    }

    const FLAT: &str = "{% if 'x' in message['content'] %}{{ message['content'] }}{% endif %}";
    const PARTS: &str = "{%- for part in message.content -%}{{ part.text }}{%- endfor -%}";

    #[test]
    fn content_has_the_shape_that_the_template_reads() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let said = |content: Value| json!([{"role": "user", "content": content}]);
        let content = |content: Value, template| {
            shape(&said(content), template).unwrap()[0]["content"].clone()
        };
        assert_eq!(content(parts.clone(), FLAT), json!("a\nb"));
        assert_eq!(content(parts.clone(), PARTS), parts);
        assert_eq!(content(json!("a"), PARTS), json!([{"type": "text", "text": "a"}]));
        let both = format!("{PARTS}{{% if message.content is string %}}{{% endif %}}");
        assert_eq!(content(json!("a"), &both), json!("a"));
    }

    #[test]
    fn calls_are_objects_and_developers_the_system() {
        let call = |arguments: &str| {
            let function = json!({"name": "f", "arguments": arguments});
            json!({"type": "function", "id": "1", "function": function})
        };
        let calls = [call("{\"a\": 1}"), call("")];
        let messages = json!([
            {"role": "developer", "content": "x"},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": calls},
            {"role": "tool", "content": "y", "tool_call_id": "1"},
            {"role": "assistant", "content": "z", "tool_calls": [], "annotations": []},
        ]);
        let shaped = shape(&messages, FLAT).unwrap();
        assert_eq!(shaped[0]["role"], "system");
        assert_eq!(shaped[1]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(shaped[1]["tool_calls"][1]["function"]["arguments"], json!({}));
        assert!(shaped[1].get("content").is_none());
        assert_eq!(shaped[3], json!({"role": "assistant", "content": "z"}));
    }

    #[test]
    fn what_a_message_cannot_hold_is_named() {
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (message, field) in [
            (json!({"role": "user", "content": image}), "messages[0].content[0].type"),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "user", "content": null}), "messages[0].content"),
            (json!({"role": "user", "content": []}), "messages[0].content"),
            (json!({"role": "user", "content": "x", "mood": 1}), "messages[0].mood"),
            (json!({"role": "assistant"}), "messages[0].content"),
            (json!({"role": "tool", "content": "x"}), "messages[0].tool_call_id"),
            (json!({"role": "function", "content": "x", "name": "f"}), "messages[0].role"),
            (json!({"content": "x"}), "messages[0].role"),
            (
                json!({"role": "assistant", "tool_calls": [{"type": "function", "id": "1",
                    "function": {"name": "f", "arguments": "[1]"}}]}),
                "messages[0].tool_calls[0].function.arguments",
            ),
        ] {
            assert_eq!(shape(&json!([message]), FLAT), Err(field.into()), "{message}");
        }
    }
}
