//! Why a model does not compile.

use codegen::CodegenError;
use frontend::FrontendError;
use ir::artifact::ArtifactError;
use passes::PassError;

/// Why a model does not compile: every problem that the failing stage found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The model cannot be read or is not supported.
    #[error("the model cannot be imported: {}", list(.0))]
    Import(Vec<FrontendError>),
    /// A pass cannot do its work on this model.
    #[error("the model cannot be compiled: {}", list(.0))]
    Pass(Vec<PassError>),
    /// Kernels could not be generated.
    #[error("kernels could not be generated: {}", list(.0))]
    Codegen(Vec<CodegenError>),
    /// The artifact could not be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The cache directory cannot be used.
    #[error("{path}: {reason}; set BROLLY_CACHE to a directory that can be written")]
    Cache {
        /// The directory.
        path: String,
        /// Why.
        reason: String,
    },
    /// The compiler broke an invariant of its own: a bug, never the model's fault.
    #[error("internal error after `{stage}`: {}", list(.problems))]
    Internal {
        /// The stage that left the module in a bad state.
        stage: &'static str,
        /// What is wrong with it.
        problems: Vec<ir::VerifyError>,
    },
}

impl CompileError {
    /// The problems one by one, each a sentence.
    pub fn problems(&self) -> Vec<String> {
        match self {
            CompileError::Import(e) => e.iter().map(ToString::to_string).collect(),
            CompileError::Pass(e) => e.iter().map(ToString::to_string).collect(),
            CompileError::Codegen(e) => e.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join("\n")
}
