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
    /// Adapters are asked for where the model has nothing of that name.
    #[error("{}", .0.join("; "))]
    Targets(Vec<String>),
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
    /// There is no plan that fits.
    #[error("the plan needs {bytes} bytes and may have {cap}: {parts}; {advice}")]
    Memory {
        /// Bytes of the plan that needs least.
        bytes: u64,
        /// Bytes that it may have.
        cap: u64,
        /// What they are for, and the largest tensors.
        parts: String,
        /// What to do.
        advice: &'static str,
    },
    /// A schedule could not be tried, or changed a result.
    #[error("tuning {product}: {reason}")]
    Tune {
        /// What was multiplied.
        product: String,
        /// Why.
        reason: String,
    },
    /// Schedules of a GPU's products cannot be timed here.
    #[error(
        "tiles are timed on the GPU that they are for: {reason}; run `brolly tune` on a machine \
         that has one, and give the table that it writes to `brolly compile --tuning`"
    )]
    NoGpu {
        /// Why there is none.
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
    /// Whether brolly is at fault, not the model: what the compiler made does not hold together.
    pub fn is_bug(&self) -> bool {
        match self {
            CompileError::Internal { .. } | CompileError::Tune { .. } => true,
            CompileError::Artifact(error) => matches!(error, ArtifactError::Invalid { .. }),
            CompileError::Codegen(errors) => {
                errors.iter().any(|e| !matches!(e, CodegenError::Lower(_)))
            }
            CompileError::Import(_)
            | CompileError::Targets(_)
            | CompileError::Pass(_)
            | CompileError::Memory { .. }
            | CompileError::NoGpu { .. }
            | CompileError::Cache { .. } => false,
        }
    }

    /// The problems one by one, each a sentence.
    pub fn problems(&self) -> Vec<String> {
        match self {
            CompileError::Import(e) => e.iter().map(ToString::to_string).collect(),
            CompileError::Targets(e) => e.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_compiler_got_wrong_is_a_bug() {
        let path = || "m.brolly".into();
        let problems = vec!["two weights of one name".to_owned()];
        let invalid = ArtifactError::Invalid { path: path(), compiler: "test".into(), problems };
        assert!(CompileError::Artifact(invalid).is_bug());
        let full = std::io::ErrorKind::StorageFull.into();
        let full = ArtifactError::Io { path: path(), doing: "write", source: full };
        assert!(!CompileError::Artifact(full).is_bug());
        let lower = codegen::lower::LowerError { op: "exp".into(), reason: "of f64".into() };
        assert!(!CompileError::Codegen(vec![lower.into()]).is_bug());
    }
}
