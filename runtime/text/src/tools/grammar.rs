//! The grammars, in llguidance's Lark, under which a model can write nothing but calls.

use serde_json::json;

use super::{Tool, ToolChoice, ToolFormat, hermes, mistral, request::wrong};
use crate::{
    constraint::{Structure, check_schema, with_json_options},
    error::TextError,
    tokenizer::Tokenizer,
};

impl ToolFormat {
    /// What an answer must be so that it makes the chosen calls, or `None` if it may be anything.
    ///
    /// A named or required choice gives calls alone, each with arguments that its tool's schema
    /// accepts; `parallel` allows more than one. Under `auto`, text may come in place of calls or
    /// before them, and the structure is there only if a tool is strict. Calls are spelled as chat
    /// templates spell earlier calls. Marks that are special tokens of the vocabulary are those
    /// tokens.
    ///
    /// # Errors
    /// [`TextError::Structure`] if a schema is too large, [`TextError::Tools`] if the tool that is
    /// named is not there.
    pub fn structure(
        self,
        tools: &[Tool],
        choice: &ToolChoice,
        parallel: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Structure>, TextError> {
        let is_auto = *choice == ToolChoice::Auto;
        if *choice == ToolChoice::None || is_auto && !tools.iter().any(|tool| tool.strict) {
            return Ok(None);
        }
        let tools: Vec<&Tool> = match choice {
            ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
            _ => tools.iter().collect(),
        };
        if tools.is_empty() {
            return Err(wrong("tool_choice".to_owned(), "names none of the `tools`"));
        }
        let mut rules = Vec::new();
        for (i, tool) in tools.iter().enumerate() {
            check_schema(&tool.parameters)?;
            let schema = match is_auto && !tool.strict {
                true => json!({"type": "object"}),
                false => tool.parameters.clone(),
            };
            let call = self.call(&tool.name, &format!("arguments_{i}"), tokenizer);
            rules.push(format!("call_{i}: {call}"));
            rules.push(format!("arguments_{i}: %json {}", with_json_options(schema)));
        }
        let any = (0..tools.len()).map(|i| format!("call_{i}")).collect::<Vec<_>>().join(" | ");
        rules.push(format!("call: {any}"));
        rules.extend(self.start(is_auto, parallel, tokenizer));
        Ok(Some(Structure::Grammar(rules.join("\n"))))
    }

    /// One call from its opening mark on, or for calls in a list without the marks of the list.
    fn call(self, name: &str, arguments: &str, tokenizer: &Tokenizer) -> String {
        let name_field = format!("{{\"name\": {}, ", json!(name));
        match self {
            Self::Hermes => {
                let head = quoted(&format!("\n{name_field}\"arguments\": "));
                let close = mark(hermes::CLOSE, tokenizer);
                format!("{head} {arguments} {} {close}", quoted("}\n"))
            }
            Self::Llama3 => {
                let head = quoted(&format!("{name_field}\"parameters\": "));
                format!("{head} {arguments} {}", quoted("}"))
            }
            Self::Mistral if has_args_mark(tokenizer) => {
                let args = mark(mistral::ARGS, tokenizer);
                format!("{} {args} {arguments}", quoted(name))
            }
            Self::Mistral => {
                let head = quoted(&format!("{name_field}\"arguments\": "));
                format!("{head} {arguments} {}", quoted("}"))
            }
        }
    }

    /// The rules from `start` to `call`.
    fn start(self, is_auto: bool, parallel: bool, tokenizer: &Tokenizer) -> Vec<String> {
        let more = |more: String| if parallel { format!(" ({more})*") } else { String::new() };
        let (open, rest) = match self {
            Self::Hermes => {
                let open = mark(hermes::OPEN, tokenizer);
                let rest = format!("call{}", more(format!("{} {open} call", quoted("\n"))));
                (Some(hermes::OPEN), rest)
            }
            Self::Llama3 => (None, format!("call{}", more(format!("{} call", quoted("; "))))),
            Self::Mistral if has_args_mark(tokenizer) => {
                let open = mark(mistral::OPEN, tokenizer);
                (Some(mistral::OPEN), format!("call{}", more(format!("{open} call"))))
            }
            Self::Mistral => {
                let list = more(format!("{} call", quoted(", ")));
                (Some(mistral::OPEN), format!("{} call{list} {}", quoted("["), quoted("]")))
            }
        };
        let Some(open) = open else {
            let mut rules = vec![format!("calls: {rest}")];
            if is_auto {
                rules.push("start: TEXT | calls".to_owned());
                rules.push(r"TEXT: /[^{\s](.|\n)*/".to_owned());
            } else {
                rules.push("start: calls".to_owned());
            }
            return rules;
        };
        let token = mark(open, tokenizer);
        let mut rules = vec![format!("calls: {rest}")];
        if !is_auto {
            rules.push(format!("start: {token} calls"));
        } else if token.starts_with('<') {
            rules.push(format!("start: TEXT | TEXT {token} calls | {token} calls"));
            rules.push(r"TEXT: /(.|\n)+/".to_owned());
        } else {
            // The text ends with the first mark in it.
            let pattern: String = open.chars().map(|c| format!("[{}]", class(c))).collect();
            rules.push("start: TEXT | lead calls".to_owned());
            rules.push(format!("TEXT: /(.|\\n)+/ & ~/(.|\\n)*{pattern}(.|\\n)*/"));
            rules.push(format!("lead[lazy]: /(.|\\n)*{pattern}/"));
        }
        rules
    }
}

fn has_args_mark(tokenizer: &Tokenizer) -> bool {
    tokenizer.token_to_id(mistral::ARGS).is_some()
}

/// A mark as its special token, or as text where it is none.
fn mark(text: &str, tokenizer: &Tokenizer) -> String {
    let special = tokenizer.special_ids();
    match tokenizer.token_to_id(text).filter(|id| special.binary_search(id).is_ok()) {
        Some(id) => format!("<[{id}]>"),
        None => quoted(text),
    }
}

/// A string of Lark, which is one of JSON.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// A character within a class.
fn class(c: char) -> String {
    if matches!(c, '[' | ']' | '/' | '^' | '-' | '\\') { format!("\\{c}") } else { c.to_string() }
}
