//! Signals that ask a run to end.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    flag,
};

use crate::failure::{Failure, Result};

/// Whether the run was asked to end.
pub(super) struct Signals(Arc<AtomicBool>);

impl Signals {
    /// From now on SIGTERM, SIGINT and SIGUSR1 ask for the end. A SIGINT after that ends at once,
    /// with the exit code that shells give.
    pub(super) fn install() -> Result<Signals> {
        let asked = Arc::new(AtomicBool::new(false));
        let install = || {
            flag::register_conditional_shutdown(SIGINT, 128 + SIGINT, asked.clone())?;
            for signal in [SIGINT, SIGTERM, SIGUSR1] {
                flag::register(signal, asked.clone())?;
            }
            Ok(())
        };
        let installed: std::io::Result<()> = install();
        installed.map_err(|e| Failure::input(format!("signals cannot be watched: {e}")))?;
        Ok(Signals(asked))
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
