//! sentence-transformers' files: what is done to a text before the tokenizer sees it.
//!
//! Pooling, normalisation and the length that texts are cut to are part of the model, not of its
//! text: whoever builds the graph reads those.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Files;

/// How a text is prepared for embedding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingConfig {
    /// Whether texts are lowercased.
    pub lowercase: bool,
    /// Texts to put before an input, by task.
    pub prompts: BTreeMap<String, String>,
    /// The prompt to use if none is asked for.
    pub default_prompt: Option<String>,
}

impl EmbeddingConfig {
    /// Reads the folder of a sentence-transformers model; `None` if it has neither `modules.json`
    /// nor `sentence_bert_config.json`.
    pub(super) fn read(files: &mut Files) -> Option<Self> {
        if !files.exists("modules.json") && !files.exists("sentence_bert_config.json") {
            return None;
        }
        let mut config = Self::default();
        if let Some(mut fields) = files.object("sentence_bert_config.json") {
            config.lowercase = fields.bool("do_lower_case").unwrap_or(false);
        }
        if let Some(mut fields) = files.object("config_sentence_transformers.json") {
            let prompts = fields.get("prompts", "an object of texts by name", |value| {
                let text = |(name, text): (&String, &Value)| {
                    Some((name.clone(), text.as_str().unwrap_or_default().to_owned()))
                        .filter(|_| text.is_string() || text.is_null())
                };
                value.as_object()?.iter().map(text).collect()
            });
            config.prompts = prompts.unwrap_or_default();
            config.default_prompt = fields.string("default_prompt_name");
        }
        Some(config)
    }
}
