//! Whether a large artifact's weights are undamaged, found out while the model starts to compute.

use std::{
    panic,
    sync::Arc,
    thread::{self, JoinHandle},
};

use ir::artifact::{Artifact, ArtifactError};

/// A verification in the background. No result may leave before [`wait`](Self::wait) has returned.
#[derive(Debug)]
pub(crate) struct Verdict {
    artifact: Arc<Artifact>,
    threads: usize,
    pending: Option<JoinHandle<Result<(), ArtifactError>>>,
}

impl Verdict {
    /// Begins to verify on so many threads, unless that was done when the artifact was opened.
    pub(crate) fn begin(artifact: &Arc<Artifact>, threads: usize) -> Verdict {
        let shared = artifact.clone();
        let verify = move || shared.verify_weights(threads);
        let pending = match artifact.is_verified() {
            true => None,
            // Without a thread `wait` does it.
            false => thread::Builder::new().name("verify".into()).spawn(verify).ok(),
        };
        Verdict { artifact: artifact.clone(), threads, pending }
    }

    /// The verdict, once it is there.
    pub(crate) fn wait(&mut self) -> Result<(), ArtifactError> {
        match self.pending.take() {
            Some(thread) => thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload)),
            None => self.artifact.verify_weights(self.threads),
        }
    }
}
