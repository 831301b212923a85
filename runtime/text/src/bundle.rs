//! Everything about text that a model's folder holds, in one serializable value.
//!
//! [`TextBundle::load`] reads the files once, when a model is compiled, and reports every problem
//! in them; the artifact carries the bundle, and the runtime builds tokenizer and chat template
//! from it. The model's own `config.json` is read for its token ids alone.

mod embedding;
mod fields;
mod generation;
mod special;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    chat::ChatTemplate,
    error::TextError,
    tokenizer::{Frame, Tokenizer},
};

pub use embedding::EmbeddingConfig;
pub use generation::GenerationDefaults;
pub use special::SpecialTokens;

use fields::Files;

/// Model lengths from here on mean "no limit": transformers writes 10^30.
const NO_LENGTH_LIMIT: u64 = 1 << 40;

/// What a model's folder says about text.
///
/// ```
/// # use brolly_text as text;
/// # fn example(folder: &std::path::Path) -> Result<(), Vec<text::TextError>> {
/// let bundle = text::TextBundle::load(folder)?;
/// let json = serde_json::to_string(&bundle).expect("a bundle is plain data");
/// let same: text::TextBundle = serde_json::from_str(&json).expect("as written");
/// assert_eq!(bundle, same);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextBundle {
    /// The text of `tokenizer.json`; a model may have none and work on token ids alone.
    pub tokenizer_json: Option<String>,
    /// Special tokens by role.
    pub special_tokens: SpecialTokens,
    /// Whether to put the `bos_token` before a text; `None` leaves it to `tokenizer.json`.
    pub add_bos_token: Option<bool>,
    /// Whether to put the `eos_token` after a text; `None` leaves it to `tokenizer.json`.
    pub add_eos_token: Option<bool>,
    /// The longest input in tokens that the tokenizer's files speak of.
    pub model_max_length: Option<usize>,
    /// Chat templates by name; a model with one has it as `default`.
    pub chat_templates: BTreeMap<String, String>,
    /// How the model's makers want text to be generated.
    pub generation: GenerationDefaults,
    /// What is done to a text before it is embedded, for sentence-transformers models.
    pub embedding: Option<EmbeddingConfig>,
}

impl TextBundle {
    /// Reads a model's folder. Files that are not there leave their part empty.
    ///
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
    /// `chat_template.jinja` and `.json`, `additional_chat_templates/*.jinja`,
    /// `generation_config.json`, `sentence_bert_config.json`, `config_sentence_transformers.json`,
    /// and the token ids in `config.json`.
    /// # Errors
    /// Every problem in any of them, in this order.
    pub fn load(folder: &Path) -> Result<Self, Vec<TextError>> {
        let mut files = Files::new(folder);
        let mut bundle = Self::default();
        bundle.read_tokenizer(&mut files);
        bundle.read_chat_templates(&mut files);
        bundle.generation = GenerationDefaults::read(&mut files);
        bundle.embedding = EmbeddingConfig::read(&mut files);
        files.finish(bundle)
    }

    /// Builds the tokenizer, or `None` if the model has none.
    ///
    /// # Errors
    /// [`TextError::Malformed`] if `tokenizer.json` is no tokenizer; [`TextError::Field`] if a
    /// token to add to every text is not in the vocabulary.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>, TextError> {
        self.build_tokenizer("tokenizer.json")
    }

    /// Compiles the chat template for a conversation with or without tools, or `None` if the model
    /// has none: the template named `tool_use` where there are tools, else `default`.
    ///
    /// # Errors
    /// [`TextError::Template`] if it does not parse.
    pub fn chat_template(&self, has_tools: bool) -> Result<Option<ChatTemplate>, TextError> {
        let tool_use = self.chat_templates.get_key_value("tool_use").filter(|_| has_tools);
        tool_use
            .or_else(|| self.chat_templates.get_key_value("default"))
            .map(|(name, source)| ChatTemplate::new(name, source))
            .transpose()
    }

    /// The tokens that end a generated text: those of `generation_config.json` or `config.json`,
    /// else the tokenizer's `eos_token`.
    #[must_use]
    pub fn eos_ids(&self, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
        if !self.generation.eos_token_ids.is_empty() {
            return self.generation.eos_token_ids.clone();
        }
        let eos = self.special_tokens.get("eos_token");
        eos.zip(tokenizer).and_then(|(eos, t)| t.token_to_id(eos)).into_iter().collect()
    }

    fn build_tokenizer(&self, file: &str) -> Result<Option<Tokenizer>, TextError> {
        let Some(json) = &self.tokenizer_json else { return Ok(None) };
        let tokenizer = Tokenizer::from_bytes(file, json.as_bytes())?;
        if self.add_bos_token.is_none() && self.add_eos_token.is_none() {
            return Ok(Some(tokenizer));
        }
        let id_of = |role: &str, wanted: Option<bool>| -> Result<Option<u32>, TextError> {
            let token = self.special_tokens.get(role).filter(|_| wanted == Some(true));
            let Some(token) = token else { return Ok(None) };
            let missing = || TextError::Field {
                file: "tokenizer_config.json".to_owned(),
                field: role.to_owned(),
                reason: format!("is {token:?}, which is not a token of {file}"),
            };
            tokenizer.token_to_id(token).map(Some).ok_or_else(missing)
        };
        let bos = id_of("bos_token", self.add_bos_token)?;
        let eos = id_of("eos_token", self.add_eos_token)?;
        Ok(Some(tokenizer.with_frame(Frame { bos, eos })))
    }

    fn read_tokenizer(&mut self, files: &mut Files) {
        self.tokenizer_json = files.text("tokenizer.json");
        if let Some(mut config) = files.object("tokenizer_config.json") {
            self.special_tokens.read(&mut config);
            self.add_bos_token = config.bool("add_bos_token");
            self.add_eos_token = config.bool("add_eos_token");
            let length = config.get("model_max_length", "a positive number", |value| {
                value.as_f64().filter(|&length| length >= 1.0)
            });
            self.model_max_length = length
                .filter(|&length| length < NO_LENGTH_LIMIT as f64)
                .and_then(|length| format!("{length:.0}").parse().ok());
            if let Some(templates) = config.get("chat_template", TEMPLATES, named_templates) {
                self.chat_templates.extend(templates);
            }
        }
        if let Some(mut map) = files.object("special_tokens_map.json") {
            self.special_tokens.read(&mut map);
        }
        let file = files.name("tokenizer.json");
        let built = self.build_tokenizer(&file);
        files.check(built);
    }

    /// Template files take precedence over `tokenizer_config.json`.
    fn read_chat_templates(&mut self, files: &mut Files) {
        if let Some(mut config) = files.object("chat_template.json")
            && let Some(templates) = config.get("chat_template", TEMPLATES, named_templates)
        {
            self.chat_templates.extend(templates);
        }
        if let Some(source) = files.text("chat_template.jinja") {
            self.chat_templates.insert("default".to_owned(), source);
        }
        for name in files.list("additional_chat_templates", ".jinja") {
            if let Some(source) = files.text(&format!("additional_chat_templates/{name}.jinja")) {
                self.chat_templates.insert(name, source);
            }
        }
        for (name, source) in &self.chat_templates {
            files.check(ChatTemplate::new(name, source));
        }
    }
}

const TEMPLATES: &str = "a template, or a list of objects with a name and a template";

/// `chat_template` as a string, or as a list of `{"name": .., "template": ..}`.
fn named_templates(value: &Value) -> Option<Vec<(String, String)>> {
    let named = |entry: &Value| {
        let part = |key| Some(entry.get(key)?.as_str()?.to_owned());
        Some((part("name")?, part("template")?))
    };
    match value {
        Value::String(source) => Some(vec![("default".to_owned(), source.clone())]),
        Value::Array(entries) => entries.iter().map(named).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
