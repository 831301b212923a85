//! Errors of passes.

use std::{fmt, sync::Arc};

/// Why a pass could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("function `{function}`: {message}")]
pub struct PassError {
    /// The function.
    pub function: Arc<str>,
    /// What is wrong.
    pub message: String,
}

impl PassError {
    /// An error about a function.
    pub fn new(function: &str, message: impl fmt::Display) -> PassError {
        PassError { function: function.into(), message: message.to_string() }
    }
}
