//! Tools: what the model may call, and whether it must.

use serde_json::Value;
use text::{Structure, TextError, Tool, ToolChoice};

use crate::http::{
    App,
    error::ApiError,
    fields::{Field, Fields, Kind, Problems, field, required},
};

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

/// The tools of a request.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Tools {
    /// As the request has them.
    given: Vec<Value>,
    list: Vec<Tool>,
    choice: ToolChoice,
    is_parallel: bool,
}

impl Tools {
    /// Reads fields that have been checked.
    pub(in crate::http) fn read(fields: Fields<'_>, problems: &mut Problems) -> Tools {
        let given = fields.list("tools").unwrap_or_default().to_vec();
        let mut tools = Tools { given, ..Tools::default() };
        tools.is_parallel = fields.bool("parallel_tool_calls").unwrap_or(true);
        let read = Tool::list(&tools.given).and_then(|list| {
            tools.choice = match ToolChoice::read(fields.get("tool_choice"), &list) {
                // Without tools the model does as it likes all the same.
                Err(_) if list.is_empty() && fields.text("tool_choice") == Some("auto") => {
                    ToolChoice::None
                }
                choice => choice?,
            };
            tools.list = list;
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(TextError::Tools { field, reason }) => problems.add(field, reason),
            Err(error) => problems.add("tools", error.to_string()),
        }
        tools
    }

    /// Whether the model may call.
    pub(super) fn are_called(&self) -> bool {
        !self.is_empty() && self.choice != ToolChoice::None
    }

    /// Whether the model must call.
    pub(super) fn must_be_called(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// Whether it calls at most one.
    pub(super) fn is_single(&self) -> bool {
        !self.is_parallel
    }

    /// What the answer must be so that it makes the chosen calls; `None` if it may be anything.
    ///
    /// # Errors
    /// 400 if the format of calls is unknown.
    pub(super) fn structure(&self, app: &App) -> Result<Option<Structure>, ApiError> {
        if !self.are_called() {
            return Ok(None);
        }
        let Some(format) = app.tool_format() else {
            if self.must_be_called() {
                let reason = "asks for a call, and how this model writes calls is not known; start \
                              the server with a tool format, or use `response_format`";
                return Err(ApiError::field("tool_choice", reason));
            }
            return Ok(None);
        };
        let tokenizer = app.tokenizer()?;
        Ok(format.structure(&self.list, &self.choice, self.is_parallel, &tokenizer)?)
    }

    pub(in crate::http) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }

    /// As the chat template sees them: those that are not to be called are not told.
    pub(super) fn for_template(&self) -> Option<Vec<Value>> {
        self.are_called().then(|| self.given.clone())
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
            (json!(null), ToolChoice::Auto),
            (json!("none"), ToolChoice::None),
            (json!("required"), ToolChoice::Required),
            (named.clone(), ToolChoice::Named("g".into())),
        ] {
            let read = read(&json!({"tools": tools, "tool_choice": choice})).unwrap();
            assert_eq!(read.choice, want);
            assert_eq!(read.for_template().is_some(), want != ToolChoice::None);
        }
        assert_eq!(read(&json!({})).unwrap().choice, ToolChoice::None);
        for (value, field) in [
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [tool("f")], "tool_choice": named}), "tool_choice"),
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
