//! What is wrong with a model's files, one value a problem; importing reports all of them at once.

use std::path::{Path, PathBuf};

/// One problem of a model's files or of the options to import it with.
///
/// Each names the file and the field, tensor or node in it, says why it is refused and what was
/// expected instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// A file that cannot be read, or is not what its name says.
    #[error("{}: {reason}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// Why it is refused.
        reason: String,
    },
    /// A field of a JSON file.
    #[error("{}: field `{field}` {reason}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, nested ones as `rope_scaling.factor`.
        field: String,
        /// Why it is refused; reads on after the field's name.
        reason: String,
    },
    /// A tensor of a checkpoint.
    #[error("{}: tensor `{tensor}` {reason}", file.display())]
    Tensor {
        /// The file that holds it or should hold it.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// Why it is refused; reads on after the tensor's name.
        reason: String,
    },
    /// A node of an ONNX graph.
    #[error("{}: node `{node}` ({op}): {reason}", file.display())]
    Node {
        /// The file.
        file: PathBuf,
        /// The node's name, or its first output where it has none.
        node: String,
        /// The node's operator.
        op: String,
        /// Why it is refused.
        reason: String,
    },
    /// An option of the import.
    #[error("option `{option}` {reason}")]
    Option {
        /// The field of [`crate::ImportOptions`].
        option: &'static str,
        /// Why it is refused; reads on after the option's name.
        reason: String,
    },
}

impl FrontendError {
    /// A problem with a whole file.
    pub fn file(file: &Path, reason: impl Into<String>) -> FrontendError {
        FrontendError::File { file: file.into(), reason: reason.into() }
    }

    /// A problem with a field.
    pub fn field(file: &Path, field: &str, reason: impl Into<String>) -> FrontendError {
        FrontendError::Field { file: file.into(), field: field.into(), reason: reason.into() }
    }

    /// A problem with a tensor.
    pub fn tensor(file: &Path, tensor: &str, reason: impl Into<String>) -> FrontendError {
        FrontendError::Tensor { file: file.into(), tensor: tensor.into(), reason: reason.into() }
    }

    /// A problem with an option.
    pub fn option(option: &'static str, reason: impl Into<String>) -> FrontendError {
        FrontendError::Option { option, reason: reason.into() }
    }
}
