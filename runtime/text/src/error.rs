//! The one error type of the crate: every variant names the file (or what stands for it) and the
//! reason.

use std::io;

/// What can be wrong with text files, templates, conversations or token ids.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file is there but cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not of the expected format as a whole.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// One field of a JSON file has a wrong value.
    #[error("{file}: `{field}` {reason}")]
    Field {
        /// The file.
        file: String,
        /// The field, nested names joined by dots.
        field: String,
        /// What is wrong, as the rest of a sentence about the field.
        reason: String,
    },
    /// A chat template does not parse, or fails while it runs.
    #[error("chat template `{name}`: {reason}")]
    Template {
        /// The template's name, `default` where the model has only one.
        name: String,
        /// The template engine's message, with the line.
        reason: String,
    },
    /// A chat template refused the conversation by `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// A conversation that no template could render.
    #[error("the conversation cannot be rendered: {reason}")]
    Conversation {
        /// What is wrong and what to do.
        reason: String,
    },
    /// Text that the tokenizer cannot encode.
    #[error("{file}: the text cannot be encoded: {reason}")]
    Encode {
        /// The tokenizer's file.
        file: String,
        /// What the tokenizer said.
        reason: String,
    },
    /// Token ids that the tokenizer cannot decode.
    #[error("{file}: the tokens cannot be decoded: {reason}")]
    Decode {
        /// The tokenizer's file.
        file: String,
        /// What the tokenizer said.
        reason: String,
    },
    /// A schema, grammar or list of choices that output cannot be held to.
    #[error("the structure cannot be enforced: {reason}")]
    Structure {
        /// What is wrong, or which limit it exceeds.
        reason: String,
    },
    /// Output under a structure that cannot go on like this.
    #[error("the output cannot go on under its structure: {reason}")]
    Constraint {
        /// Why not.
        reason: String,
    },
    /// Tools, or a choice among them, that no call could be made of.
    #[error("`{field}` {reason}")]
    Tools {
        /// The field of the request, such as `tools[1].function.name`.
        field: String,
        /// What is wrong, as the rest of a sentence about the field.
        reason: String,
    },
    /// The name of a format of output that this crate does not know.
    #[error("there is no {kind} named `{name}`; known are {known}")]
    UnknownFormat {
        /// What the format is of.
        kind: &'static str,
        /// The name that was given.
        name: String,
        /// All names.
        known: &'static str,
    },
    /// A stop string that would match everywhere.
    #[error("stop string {index} is empty; leave it out or give it text")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
}

impl TextError {
    /// The error of a use that cannot do without a tokenizer, for a model that has none.
    #[must_use]
    pub fn no_tokenizer() -> TextError {
        let reason = "is missing in the model's folder, so only token ids can be used; if the \
                      folder has its vocabulary in another file, write tokenizer.json with \
                      transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
        TextError::Malformed { file: "tokenizer.json".to_owned(), reason: reason.to_owned() }
    }
}
