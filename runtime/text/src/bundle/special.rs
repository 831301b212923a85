//! Special tokens by role, from `tokenizer_config.json` and `special_tokens_map.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fields::Fields;

/// The lists of tokens without a role, under the names that transformers has given them.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Special tokens as the tokenizer's files name them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpecialTokens {
    /// Tokens by role: `bos_token`, `eos_token`, `pad_token`, `unk_token`, and the model's own.
    pub by_role: BTreeMap<String, String>,
    /// Further ones, without a role.
    pub additional: Vec<String>,
}

impl SpecialTokens {
    /// The token of a role, such as `bos_token`.
    #[must_use]
    pub fn get(&self, role: &str) -> Option<&str> {
        self.by_role.get(role).map(String::as_str)
    }

    /// The variables that a chat template knows special tokens by.
    #[must_use]
    pub fn variables(&self) -> Map<String, Value> {
        let mut variables: Map<String, Value> = self
            .by_role
            .iter()
            .map(|(role, token)| (role.clone(), Value::from(token.as_str())))
            .collect();
        if !self.additional.is_empty() {
            variables.insert(LISTS[0].to_owned(), self.additional.clone().into());
        }
        variables
    }

    /// Takes what the object says of tokens; earlier files take precedence.
    pub(super) fn read(&mut self, fields: &mut Fields<'_>) {
        for role in fields.names().iter().filter(|name| name.ends_with("_token")) {
            // `add_bos_token` and its like are switches.
            if role.starts_with("add_") {
                continue;
            }
            if let Some(token) = fields.get(role, "a token", content) {
                self.by_role.entry(role.clone()).or_insert(token);
            }
        }
        for list in LISTS {
            let expected = "a list of tokens, or an object of tokens by role";
            match fields.get(list, expected, tokens) {
                Some(Tokens::List(tokens)) => {
                    for token in tokens {
                        if !self.additional.contains(&token) {
                            self.additional.push(token);
                        }
                    }
                }
                Some(Tokens::ByRole(tokens)) => {
                    for (role, token) in tokens {
                        self.by_role.entry(role).or_insert(token);
                    }
                }
                None => {}
            }
        }
    }
}

enum Tokens {
    List(Vec<String>),
    ByRole(Vec<(String, String)>),
}

/// A token is a string, or an object with its `content` and how it is matched.
fn content(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

fn tokens(value: &Value) -> Option<Tokens> {
    match value {
        Value::Array(tokens) => {
            Some(Tokens::List(tokens.iter().map(content).collect::<Option<_>>()?))
        }
        Value::Object(tokens) => {
            let named = tokens.iter().map(|(role, token)| Some((role.clone(), content(token)?)));
            Some(Tokens::ByRole(named.collect::<Option<_>>()?))
        }
        _ => None,
    }
}
