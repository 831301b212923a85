//! What an answer must follow: `response_format`, vLLM's `structured_outputs` and its older
//! `guided_*` fields.

use std::sync::Arc;

use serde_json::{Value, json};
use text::{ReasoningFormat, Structure};

use super::{
    App, aside,
    error::ApiError,
    fields::{Field, Fields, Kind, Problems, Table, field, required},
};
use crate::engine::Request;

const TEXTS: Kind = Kind::List { of: &Kind::Text, from: 1, to: 4096 };
const SCHEMA: Kind = Kind::OneOf(&[Kind::AnyObject, Kind::Bool, Kind::Name]);

const NAMED_SCHEMA: Table = &[&[
    required("name", Kind::Name, ""),
    field("description", Kind::Text, ""),
    field("schema", Kind::AnyObject, "The JSON Schema; any object without one."),
    field("strict", Kind::Bool, "Answers follow the schema in either case."),
]];

const TYPE: Field = required("type", Kind::Text, "");

/// The rows.
pub(super) const STRUCTURED: &[Field] = &[
    field(
        "response_format",
        Kind::Tagged {
            by: "type",
            of: &[
                ("text", &[&[TYPE]]),
                ("json_object", &[&[TYPE]]),
                (
                    "json_schema",
                    &[&[TYPE, required("json_schema", Kind::Object(NAMED_SCHEMA), "")]],
                ),
            ],
        },
        "What the answer must be.",
    ),
    field(
        "structured_outputs",
        Kind::Object(&[&[
            field("json", SCHEMA, "A JSON Schema, as an object or as text."),
            field("json_object", Kind::Bool, "Whether the answer is a JSON object."),
            field("regex", Kind::Name, "A regular expression for the whole answer."),
            field("choice", TEXTS, "The possible answers."),
            field("grammar", Kind::Name, "A context-free grammar."),
        ]]),
        "What the answer must be: exactly one of these.",
    ),
    field("guided_json", SCHEMA, "As `structured_outputs.json`."),
    field("guided_regex", Kind::Name, "As `structured_outputs.regex`."),
    field("guided_choice", TEXTS, "As `structured_outputs.choice`."),
    field("guided_grammar", Kind::Name, "As `structured_outputs.grammar`."),
];

/// A structure, and the field that asks for it.
pub(super) type Asked = (String, Structure);

/// Reads fields that have been checked; at most one of them may ask for something.
pub(super) fn read(fields: Fields<'_>, problems: &mut Problems) -> Option<Asked> {
    let mut asked: Vec<Asked> = Vec::new();
    if let Some(format) = fields.object("response_format") {
        let structure = match format.text("type") {
            Some("json_object") => Some(Structure::JsonObject),
            Some("json_schema") => format.object("json_schema").map(|named| {
                let schema = named.get("schema").cloned();
                Structure::JsonSchema(schema.unwrap_or_else(|| json!({"type": "object"})))
            }),
            _ => None,
        };
        asked.extend(structure.map(|structure| ("response_format".to_owned(), structure)));
    }
    if let Some(outputs) = fields.object("structured_outputs") {
        let before = asked.len();
        collect(outputs, "", "structured_outputs.", problems, &mut asked);
        if outputs.bool("json_object") == Some(true) {
            asked.push(("structured_outputs.json_object".into(), Structure::JsonObject));
        }
        if asked.len() == before {
            let reason = "asks for nothing, and must have one of json, json_object, regex, choice \
                          and grammar";
            problems.add("structured_outputs", reason);
        }
    }
    collect(fields, "guided_", "", problems, &mut asked);
    if let [(first, _), .., (last, _)] = &asked[..] {
        let reason = format!("asks for one thing and `{first}` for another; give one of them");
        problems.add(last, reason);
    }
    asked.into_iter().next()
}

fn collect(
    fields: Fields<'_>,
    prefix: &str,
    path: &str,
    problems: &mut Problems,
    asked: &mut Vec<Asked>,
) {
    let name = |field: &str| format!("{prefix}{field}");
    let text = |field: &str| fields.text(&name(field)).map(str::to_owned);
    let choice = Some(fields.texts(&name("choice"))).filter(|texts| !texts.is_empty());
    let schema = fields.get(&name("json")).and_then(|schema| match schema {
        // A schema may be written out as text.
        Value::String(text) => match serde_json::from_str(text) {
            Ok(schema) => Some(schema),
            Err(error) => {
                problems.add(format!("{path}{}", name("json")), format!("is no JSON: {error}"));
                None
            }
        },
        schema => Some(schema.clone()),
    });
    let found = [
        ("json", schema.map(Structure::JsonSchema)),
        ("regex", text("regex").map(Structure::Regex)),
        ("choice", choice.map(Structure::Choice)),
        ("grammar", text("grammar").map(Structure::Grammar)),
    ];
    for (field, structure) in found {
        asked.extend(structure.map(|structure| (format!("{path}{}", name(field)), structure)));
    }
}

impl App {
    /// Makes a request's answer follow a structure, which begins after reasoning where the format
    /// of that and the prompt's end are given. The first one takes longer: it sorts the vocabulary.
    ///
    /// # Errors
    /// 400 if it cannot be followed.
    pub(super) async fn constrain(
        self: &Arc<App>,
        request: &mut Request,
        asked: Option<Asked>,
        reasoning: Option<(ReasoningFormat, String)>,
    ) -> Result<(), ApiError> {
        let Some((field, structure)) = asked else { return Ok(()) };
        let app = self.clone();
        let compile = move || {
            let grammars = app.grammars()?;
            let compiled = match reasoning {
                Some((format, end)) => grammars.compile_after_reasoning(&structure, format, &end),
                None => grammars.compile(&structure),
            };
            compiled.map_err(|error| ApiError::from(error).rename("response_format", &field))
        };
        request.constraint = Some(aside(usize::MAX, compile).await?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: &Value) -> Result<Option<Structure>, (String, String)> {
        let mut problems = Problems::new(50);
        problems.check_object(&[STRUCTURED], value.as_object().unwrap(), "");
        let structure = read(Fields(value.as_object().unwrap()), &mut problems);
        let result = problems.into_result();
        result.map_err(|error| (error.param.unwrap(), error.message))?;
        Ok(structure.map(|(_, structure)| structure))
    }

    #[test]
    fn every_way_to_ask_is_heard() {
        let schema = json!({"type": "array"});
        let named = json!({"name": "x", "schema": schema, "strict": true});
        for (value, want) in [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"response_format": {"type": "json_object"}}), Some(Structure::JsonObject)),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": named}}),
                Some(Structure::JsonSchema(schema.clone())),
            ),
            (json!({"guided_json": schema}), Some(Structure::JsonSchema(schema.clone()))),
            (json!({"guided_json": "{\"type\":\"array\"}"}), Some(Structure::JsonSchema(schema))),
            (json!({"guided_regex": "a+"}), Some(Structure::Regex("a+".into()))),
            (
                json!({"guided_choice": ["a", "b"]}),
                Some(Structure::Choice(vec!["a".into(), "b".into()])),
            ),
            (
                json!({"guided_grammar": "root ::= x"}),
                Some(Structure::Grammar("root ::= x".into())),
            ),
            (json!({"structured_outputs": {"regex": "a"}}), Some(Structure::Regex("a".into()))),
            (json!({"structured_outputs": {"json_object": true}}), Some(Structure::JsonObject)),
        ] {
            assert_eq!(ask(&value), Ok(want), "{value}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (value, field) in [
            (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"json_object": false}}), "structured_outputs"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"guided_json": "{"}), "guided_json"),
            (
                json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
                "guided_regex",
            ),
        ] {
            assert_eq!(ask(&value).unwrap_err().0, field, "{value}");
        }
    }
}
