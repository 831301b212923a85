//! What can go wrong between a request and its answer.

use exec::ExecError;
use ir::artifact::ArtifactError;
use text::TextError;

/// Why a model cannot be opened or a request not be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The artifact is at fault.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Loading or running is at fault.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// Tokenizer, template or conversation is at fault.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The request is at fault.
    #[error("{field}: {reason}")]
    Request {
        /// The part of the request, such as `temperature`.
        field: &'static str,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The model is of another kind than the request needs.
    #[error("the model ({architecture}) {reason}")]
    Kind {
        /// Its architecture.
        architecture: String,
        /// What it cannot do and what it is for.
        reason: String,
    },
    /// The artifact's entry point is not as this runtime expects.
    #[error("entry `{entry}` is not as this runtime expects: {reason}; compile the model again")]
    Entry {
        /// The entry point.
        entry: &'static str,
        /// What differs.
        reason: String,
    },
    /// The model computes something that is no finite number.
    #[error(
        "{what}: the model's weights are broken, or overflow in the precision that it was \
         compiled for"
    )]
    NotFinite {
        /// What, as a sentence.
        what: String,
    },
    /// The engine has ended before the answer.
    #[error("the engine has ended before it could answer")]
    Stopped,
    /// Something that others share broke, and this request with it.
    #[error("{reason}")]
    Broken {
        /// What, as a sentence.
        reason: String,
    },
}

impl ServeError {
    /// Logits of which no token can be drawn, or no probability told.
    pub(crate) fn logits(position: usize) -> ServeError {
        let what = format!("the logits after position {position} hold NaN or infinity");
        ServeError::NotFinite { what }
    }

    pub(crate) fn request(field: &'static str, reason: impl Into<String>) -> ServeError {
        ServeError::Request { field, reason: reason.into() }
    }
}
