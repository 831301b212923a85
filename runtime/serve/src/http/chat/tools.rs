//! Tools: what the model may call, and whether it must.

use serde_json::Value;

use crate::http::fields::{Field, Fields, Kind, Problems, field, required};

const FUNCTION: Kind = Kind::Object(&[&[
    required("name", Kind::Name, ""),
    field("description", Kind::Text, "What it does and when to call it."),
    field("parameters", Kind::AnyObject, "The JSON Schema of its arguments."),
    field("strict", Kind::Bool, "Whether arguments must follow the schema."),
]]);

/// The rows.
pub(in crate::http) const TOOLS: &[Field] = &[
    field(
        "tools",
        Kind::List {
            of: &Kind::Tagged {
                by: "type",
                of: &[(
                    "function",
                    &[&[required("type", Kind::Text, ""), required("function", FUNCTION, "")]],
                )],
            },
            from: 0,
            to: 128,
        },
        "Functions that the model may call.",
    ),
    field(
        "tool_choice",
        Kind::OneOf(&[
            Kind::Choice(&["none", "auto", "required"]),
            Kind::Tagged {
                by: "type",
                of: &[(
                    "function",
                    &[&[
                        required("type", Kind::Text, ""),
                        required(
                            "function",
                            Kind::Object(&[&[required("name", Kind::Name, "")]]),
                            "",
                        ),
                    ]],
                )],
            },
        ]),
        "Whether the model calls none, may call some, must call one, or which one.",
    ),
    field("parallel_tool_calls", Kind::Bool, "Whether it may call several; true by default."),
    field("functions", Kind::Only { values: &["[]"], why: "use `tools`" }, ""),
    field("function_call", Kind::Only { values: &["\"none\""], why: "use `tool_choice`" }, ""),
];

/// What the model does with tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::http) enum Choice {
    /// Calls none.
    None,
    /// Calls some or none.
    #[default]
    Auto,
    /// Calls at least one.
    Required,
    /// Calls this one.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Tools {
    pub(super) list: Vec<Value>,
    pub(super) choice: Choice,
    pub(super) is_parallel: bool,
}

impl Tools {
    /// Reads fields that have been checked.
    pub(in crate::http) fn read(fields: Fields<'_>, problems: &mut Problems) -> Tools {
        let list = fields.list("tools").unwrap_or_default().to_vec();
        let names: Vec<&str> =
            list.iter().filter_map(|tool| tool.pointer("/function/name")?.as_str()).collect();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                let path = format!("tools[{index}].function.name");
                problems.add(path, format!("is {name:?}, as that of another tool"));
            }
        }
        let choice = match fields.get("tool_choice") {
            None if list.is_empty() => Choice::None,
            None => Choice::Auto,
            Some(Value::String(text)) => match text.as_str() {
                "none" => Choice::None,
                "required" => Choice::Required,
                _ => Choice::Auto,
            },
            Some(named) => {
                let name = named.pointer("/function/name").and_then(Value::as_str);
                Choice::Named(name.unwrap_or_default().to_owned())
            }
        };
        match &choice {
            Choice::Required | Choice::Named(_) if list.is_empty() => {
                problems.add("tool_choice", "asks for a call, and there are no `tools`");
            }
            Choice::Named(name) if !names.contains(&name.as_str()) => {
                problems.add("tool_choice.function.name", format!("is {name:?}, and no tool is"));
            }
            _ => {}
        }
        let is_parallel = fields.bool("parallel_tool_calls").unwrap_or(true);
        Tools { list, choice, is_parallel }
    }

    pub(in crate::http) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// As the chat template sees them: those that are not to be called are not told.
    pub(super) fn for_template(&self) -> Option<Vec<Value>> {
        (!self.is_empty() && self.choice != Choice::None).then(|| self.list.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Tools, String> {
        let mut problems = Problems::new(50);
        problems.check_object(&[TOOLS], value.as_object().unwrap(), "");
        let tools = Tools::read(Fields(value.as_object().unwrap()), &mut problems);
        problems.into_result().map_err(|error| error.param.unwrap())?;
        Ok(tools)
    }

    #[test]
    fn choices_are_read() {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let tools = json!([tool("f"), tool("g")]);
        let named = json!({"type": "function", "function": {"name": "g"}});
        for (choice, want) in [
            (json!(null), Choice::Auto),
            (json!("none"), Choice::None),
            (json!("required"), Choice::Required),
            (named.clone(), Choice::Named("g".into())),
        ] {
            let read = read(&json!({"tools": tools, "tool_choice": choice})).unwrap();
            assert_eq!(read.choice, want);
            assert_eq!(read.for_template().is_some(), want != Choice::None);
        }
        assert_eq!(read(&json!({})).unwrap().choice, Choice::None);
        for (value, field) in [
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [tool("f")], "tool_choice": named}), "tool_choice.function.name"),
            (json!({"tools": [tool("f"), tool("f")]}), "tools[1].function.name"),
            (json!({"tools": [{"type": "custom"}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tool_choice": "maybe"}), "tool_choice"),
            (json!({"functions": [{"name": "f"}]}), "functions"),
            (json!({"function_call": "auto"}), "function_call"),
        ] {
            assert_eq!(read(&value).unwrap_err(), field, "{value}");
        }
    }
}
