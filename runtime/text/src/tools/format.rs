//! The formats by name, and which of them a model uses.

use std::{fmt, str::FromStr};

use super::{hermes, llama, mistral};
use crate::{error::TextError, tokenizer::Tokenizer};

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes 2 Pro, Qwen 2.5 and 3.
    Hermes,
    /// `{"name": .., "parameters": {..}}`, alone or after `<|python_tag|>`: Llama 3.1 and later.
    Llama3,
    /// `[TOOL_CALLS]name[ARGS]{..}`, and `[TOOL_CALLS][{"name": .., "arguments": {..}}]` of models
    /// before 2025: Mistral.
    Mistral,
}

const NAMES: [(&str, ToolFormat); 5] = [
    ("hermes", ToolFormat::Hermes),
    ("qwen", ToolFormat::Hermes),
    ("llama3", ToolFormat::Llama3),
    ("llama3_json", ToolFormat::Llama3),
    ("mistral", ToolFormat::Mistral),
];

impl ToolFormat {
    /// Guesses from the source of a chat template, and where that is silent from the vocabulary.
    /// `None` if it shows no format, or one that this crate does not read.
    #[must_use]
    pub fn detect(template: &str, tokenizer: Option<&Tokenizer>) -> Option<Self> {
        // XML within the tags: Qwen 3 Coder.
        if template.contains("<function=") {
            return None;
        }
        let has_token = |token| tokenizer.is_some_and(|t| t.token_to_id(token).is_some());
        if template.contains(mistral::OPEN) {
            Some(Self::Mistral)
        } else if template.contains(hermes::OPEN) {
            Some(Self::Hermes)
        } else if template.contains("\"parameters\": ") || template.contains(llama::TAG) {
            Some(Self::Llama3)
        } else if !template.contains("tools") {
            None
        } else if has_token(mistral::OPEN) {
            Some(Self::Mistral)
        } else if has_token(hermes::OPEN) {
            Some(Self::Hermes)
        } else {
            has_token(llama::TAG).then_some(Self::Llama3)
        }
    }

    /// The marks that the parser must see in the text. Where the vocabulary has them as special
    /// tokens, as it does for Mistral (and Llama's `<|python_tag|>`), decoding must not skip them.
    #[must_use]
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &[hermes::OPEN, hermes::CLOSE],
            Self::Llama3 => &[llama::TAG],
            Self::Mistral => &[mistral::OPEN, mistral::ARGS],
        }
    }
}

impl FromStr for ToolFormat {
    type Err = TextError;

    /// Reads `hermes` (or `qwen`), `llama3` (or `llama3_json`) or `mistral`.
    fn from_str(name: &str) -> Result<Self, TextError> {
        let format = NAMES.iter().find(|(known, _)| *known == name).map(|&(_, format)| format);
        format.ok_or_else(|| TextError::UnknownFormat {
            kind: "format of tool calls",
            name: name.to_owned(),
            known: "hermes, llama3 and mistral",
        })
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hermes => "hermes",
            Self::Llama3 => "llama3",
            Self::Mistral => "mistral",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    #[test]
    fn templates_show_their_format() {
        let detect = |template| ToolFormat::detect(template, None);
        assert_eq!(detect("{{ '<tool_call>\\n{\"name\": \"' }}"), Some(ToolFormat::Hermes));
        assert_eq!(detect("{{ '<tool_call>\\n<function=' }}"), None);
        assert_eq!(detect("{{ '[TOOL_CALLS]' }}"), Some(ToolFormat::Mistral));
        let llama = include_str!("../chat/tests/llama.jinja");
        assert_eq!(detect(llama), Some(ToolFormat::Llama3));
        assert_eq!(detect(include_str!("../chat/tests/chatml.jinja")), None);
    }

    #[test]
    fn the_vocabulary_decides_where_the_template_is_silent() {
        let mut json = tiny::byte_level();
        let token = serde_json::json!({"id": 265, "content": "[TOOL_CALLS]", "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
        json["added_tokens"].as_array_mut().unwrap().push(token);
        let tokenizer = tiny::tokenizer(&json);
        let detect = |template| ToolFormat::detect(template, Some(&tokenizer));
        assert_eq!(detect("{% if tools %}"), Some(ToolFormat::Mistral));
        assert_eq!(detect("{{ messages }}"), None);
    }

    #[test]
    fn names() {
        for (name, format) in NAMES {
            assert_eq!(name.parse::<ToolFormat>().unwrap(), format);
            assert_eq!(format.to_string().parse::<ToolFormat>().unwrap(), format);
        }
        let error = "xml".parse::<ToolFormat>().unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no format of tool calls named `xml`; known are hermes, llama3 and mistral"
        );
    }
}
