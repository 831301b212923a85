//! Tools and the choice among them, as OpenAI's chat completions write them.

use serde_json::{Value, json};

use crate::error::TextError;

/// The longest name of a function that OpenAI takes.
const MAX_NAME: usize = 64;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Value,
    /// Whether calls must keep to the schema even where the model chooses to call.
    pub strict: bool,
}

/// Whether the model calls, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Nothing.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// At least one of the tools.
    Required,
    /// The tool of this name.
    Named(String),
}

impl Tool {
    /// Reads a request's `tools`: `{"type": "function", "function": {"name": ..}}` each.
    ///
    /// # Errors
    /// [`TextError::Tools`] with the field that is wrong.
    pub fn list(tools: &[Value]) -> Result<Vec<Self>, TextError> {
        let read: Vec<Self> = tools.iter().enumerate().map(Self::read).collect::<Result<_, _>>()?;
        for (i, tool) in read.iter().enumerate() {
            if read[..i].iter().any(|other| other.name == tool.name) {
                let reason = format!("is {:?}, as an earlier tool's", tool.name);
                return Err(wrong(format!("tools[{i}].function.name"), reason));
            }
        }
        Ok(read)
    }

    fn read((i, tool): (usize, &Value)) -> Result<Self, TextError> {
        let field = |name: &str| format!("tools[{i}].{name}");
        if tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(wrong(field("type"), "should be \"function\""));
        }
        let Some(Value::Object(function)) = tool.get("function") else {
            return Err(wrong(field("function"), "should be an object with the function's name"));
        };
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        if !(1..=MAX_NAME).contains(&name.len()) || !name.chars().all(is_part) {
            let reason = "should be 1 to 64 letters, digits, underscores, dashes and dots";
            return Err(wrong(field("function.name"), reason));
        }
        let parameters = match function.get("parameters") {
            None | Some(Value::Null) => json!({"type": "object", "properties": {}}),
            Some(Value::Object(schema)) => {
                let mut schema = schema.clone();
                // Arguments are an object, whatever the schema leaves out.
                schema.entry("type").or_insert_with(|| "object".into());
                Value::Object(schema)
            }
            Some(_) => return Err(wrong(field("function.parameters"), "should be a JSON schema")),
        };
        let strict = match function.get("strict") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(strict)) => *strict,
            Some(_) => return Err(wrong(field("function.strict"), "should be true or false")),
        };
        Ok(Self { name: name.to_owned(), parameters, strict })
    }
}

impl ToolChoice {
    /// Reads a request's `tool_choice`: `"none"`, `"auto"`, `"required"`, or
    /// `{"type": "function", "function": {"name": ..}}`. Absent or null, it is `auto` if there are
    /// tools.
    ///
    /// # Errors
    /// [`TextError::Tools`] if it is none of these, or asks for a tool that is not among `tools`.
    pub fn read(choice: Option<&Value>, tools: &[Tool]) -> Result<Self, TextError> {
        let refuse = |reason: String| Err(wrong("tool_choice".to_owned(), reason));
        let choice = match choice {
            None | Some(Value::Null) => {
                return Ok(if tools.is_empty() { Self::None } else { Self::Auto });
            }
            Some(choice) => choice,
        };
        let name = choice.pointer("/function/name").and_then(Value::as_str);
        let choice = match (choice.as_str(), name) {
            (Some("none"), _) => Self::None,
            (Some("auto"), _) => Self::Auto,
            (Some("required"), _) => Self::Required,
            (None, Some(name)) if tools.iter().any(|tool| tool.name == name) => {
                Self::Named(name.to_owned())
            }
            (None, Some(name)) => {
                return refuse(format!("names {name:?}, which is not in `tools`"));
            }
            _ => {
                return refuse(
                    "should be \"none\", \"auto\", \"required\" or \
                     {\"type\": \"function\", \"function\": {\"name\": ..}}"
                        .to_owned(),
                );
            }
        };
        if tools.is_empty() && choice != Self::None {
            return refuse("needs `tools`".to_owned());
        }
        Ok(choice)
    }
}

pub(super) fn wrong(field: String, reason: impl Into<String>) -> TextError {
    TextError::Tools { field, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(function: &Value) -> Value {
        json!({"type": "function", "function": function})
    }

    #[test]
    fn tools_and_choices_as_openai_writes_them() {
        let tools = Tool::list(&[
            function(&json!({"name": "now"})),
            function(&json!({"name": "get.weather-2", "description": "..", "strict": true,
                "parameters": {"properties": {"city": {"type": "string"}}}})),
        ]);
        let tools = tools.unwrap();
        assert_eq!(tools[0].parameters, json!({"type": "object", "properties": {}}));
        assert_eq!(tools[1].parameters["type"], "object");
        assert_eq!((tools[0].strict, tools[1].strict), (false, true));

        let read = |choice: Value| ToolChoice::read(Some(&choice), &tools).unwrap();
        assert_eq!(read(json!(null)), ToolChoice::Auto);
        assert_eq!(read(json!("required")), ToolChoice::Required);
        assert_eq!(read(function(&json!({"name": "now"}))), ToolChoice::Named("now".to_owned()));
        assert_eq!(ToolChoice::read(None, &[]).unwrap(), ToolChoice::None);
        assert_eq!(ToolChoice::read(Some(&json!("none")), &[]).unwrap(), ToolChoice::None);
    }

    #[test]
    fn errors_name_the_field() {
        let twice = function(&json!({"name": "a"}));
        for (tools, start) in [
            (vec![json!({"type": "retrieval"})], "`tools[0].type` should be \"function\""),
            (vec![json!(3)], "`tools[0].function` should be an object"),
            (vec![function(&json!({"name": "a b"}))], "`tools[0].function.name` should be 1 to 64"),
            (vec![function(&json!({"name": "a", "parameters": []}))], "`tools[0].function.param"),
            (vec![function(&json!({"name": "a", "strict": 1}))], "`tools[0].function.strict`"),
            (vec![twice.clone(), twice], "`tools[1].function.name` is \"a\", as an earlier"),
        ] {
            let error = Tool::list(&tools).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        let tools = Tool::list(&[function(&json!({"name": "a"}))]).unwrap();
        for choice in [json!("any"), json!(1), json!({}), function(&json!({"name": "b"}))] {
            let error = ToolChoice::read(Some(&choice), &tools).unwrap_err().to_string();
            assert!(error.starts_with("`tool_choice` "), "{error}");
        }
        let error = ToolChoice::read(Some(&json!("required")), &[]).unwrap_err().to_string();
        assert_eq!(error, "`tool_choice` needs `tools`");
    }
}
