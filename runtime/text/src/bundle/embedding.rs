//! sentence-transformers' files: how the vectors of tokens become one vector of a text.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{Fields, Files};

/// How vectors of tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolingMode {
    /// The first token's vector.
    Cls,
    /// The greatest value of each component.
    Max,
    /// The mean.
    Mean,
    /// The sum divided by the square root of the number of tokens.
    MeanSqrtLen,
    /// The mean with weights 1, 2, 3 .. by position.
    WeightedMean,
    /// The last token's vector.
    LastToken,
}

/// In the order in which sentence-transformers concatenates them: the name in new files, the switch
/// in old ones.
const MODES: [(PoolingMode, &str, &str); 6] = [
    (PoolingMode::Cls, "cls", "pooling_mode_cls_token"),
    (PoolingMode::Max, "max", "pooling_mode_max_tokens"),
    (PoolingMode::Mean, "mean", "pooling_mode_mean_tokens"),
    (PoolingMode::MeanSqrtLen, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    (PoolingMode::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
    (PoolingMode::LastToken, "lasttoken", "pooling_mode_lasttoken"),
];

/// How a text is embedded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingConfig {
    /// Modes whose vectors are concatenated in this order; nearly always one.
    pub pooling: Vec<PoolingMode>,
    /// Whether the tokens of a prompt count in the pooling.
    pub include_prompt: bool,
    /// Whether the vector is scaled to length 1.
    pub normalize: bool,
    /// Texts are cut to this many tokens, special ones included.
    pub max_seq_length: Option<usize>,
    /// Whether texts are lowercased before the tokenizer sees them.
    pub lowercase: bool,
    /// Texts to put before an input, by task.
    pub prompts: BTreeMap<String, String>,
    /// The prompt to use if none is asked for.
    pub default_prompt: Option<String>,
}

impl Default for EmbeddingConfig {
    /// What sentence-transformers does with a bare encoder: the mean of all tokens.
    fn default() -> Self {
        Self {
            pooling: vec![PoolingMode::Mean],
            include_prompt: true,
            normalize: false,
            max_seq_length: None,
            lowercase: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
        }
    }
}

impl EmbeddingConfig {
    /// Reads the folder of a sentence-transformers model; `None` if it has neither `modules.json`
    /// nor `sentence_bert_config.json`.
    pub(super) fn read(files: &mut Files) -> Option<Self> {
        let has_modules = files.exists("modules.json");
        if !has_modules && !files.exists("sentence_bert_config.json") {
            return None;
        }
        let mut config = Self::default();
        if has_modules {
            config.read_modules(files);
        }
        if let Some(mut fields) = files.object("sentence_bert_config.json") {
            config.max_seq_length = fields.count("max_seq_length", 1);
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

    fn read_modules(&mut self, files: &mut Files) {
        const MODULES: &str = "modules.json";
        let Some(list) = files.json(MODULES) else { return };
        let Some(list) = list.as_array() else {
            files.malformed(MODULES, "should hold a list of modules");
            return;
        };
        for (i, module) in list.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Value::as_str);
            let (Some(kind), Some(path)) = (text("type"), text("path")) else {
                files.malformed(MODULES, format!("module {i} should have a type and a path"));
                continue;
            };
            // Types are Python paths, which differ between versions in all but the last name.
            match kind.rsplit('.').next().unwrap_or(kind) {
                "Transformer" => {}
                "Normalize" => self.normalize = true,
                "Pooling" => {
                    let file = Path::new(path).join("config.json").display().to_string();
                    if !is_plain(path) {
                        files.malformed(
                            MODULES,
                            format!("module {i} has a path outside the folder"),
                        );
                    } else if let Some(mut fields) = files.object(&file) {
                        self.read_pooling(&mut fields);
                    } else if !files.exists(&file) {
                        files.malformed(&file, format!("is missing, though {MODULES} names it"));
                    }
                }
                _ => {
                    let known = "Transformer, Pooling and Normalize are supported";
                    files.malformed(MODULES, format!("module {i} is a {kind}; only {known}"));
                }
            }
        }
    }

    fn read_pooling(&mut self, fields: &mut Fields<'_>) {
        let mode_of = |value: &Value| {
            let name = value.as_str()?;
            MODES.iter().find(|(_, known, _)| *known == name).map(|(mode, ..)| *mode)
        };
        let expected = "one of cls, max, mean, mean_sqrt_len_tokens, weightedmean and lasttoken, or a \
                        list of them";
        let named = fields.get("pooling_mode", expected, |value| match value {
            Value::Array(modes) => modes.iter().map(mode_of).collect(),
            one => mode_of(one).map(|mode| vec![mode]),
        });
        let mut switched = Vec::new();
        for (mode, _, switch) in MODES {
            if fields.bool(switch) == Some(true) {
                switched.push(mode);
            }
        }
        let modes = named.unwrap_or(switched);
        if !modes.is_empty() {
            self.pooling = modes;
        }
        self.include_prompt = fields.bool("include_prompt").unwrap_or(true);
    }
}

/// A relative path without a way up.
fn is_plain(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}
