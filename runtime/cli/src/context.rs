//! What all commands share: threads and the timeline.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    num::NonZeroUsize,
    path::PathBuf,
};

use exec::Trace;
use tracing_subscriber::EnvFilter;

use crate::{
    args::Global,
    failure::{Failure, Result},
};

/// Flags of every command, made into what they stand for.
#[derive(Debug)]
pub(crate) struct Context {
    threads: Option<NonZeroUsize>,
    gpu: Option<u32>,
    trace: Option<(Trace, PathBuf, File)>,
}

impl Context {
    /// Opens the timeline's file at once: better now than after an hour of work.
    pub(crate) fn new(flags: &Global) -> Result<Context> {
        let open = |path: &PathBuf| {
            let file = File::create(path).map_err(|e| unwritable(path, &e))?;
            Ok::<_, Failure>((Trace::new(), path.clone(), file))
        };
        let trace = flags.trace.as_ref().map(open).transpose()?;
        Ok(Context { threads: flags.threads, gpu: flags.device, trace })
    }

    /// The number of threads to run on.
    pub(crate) fn threads(&self) -> NonZeroUsize {
        self.threads.unwrap_or_else(exec::available_threads)
    }

    /// Which GPU to run on, where one is chosen.
    pub(crate) fn gpu(&self) -> Option<u32> {
        self.gpu
    }

    /// The timeline, where one is asked for.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref().map(|(trace, ..)| trace)
    }

    /// Writes the timeline.
    pub(crate) fn finish(&self) -> Result<()> {
        let Some((trace, path, file)) = &self.trace else { return Ok(()) };
        let mut out = BufWriter::new(file);
        trace.write(&mut out).and_then(|()| out.flush()).map_err(|e| unwritable(path, &e))
    }
}

/// Shows log events on stderr where `BROLLY_LOG` asks for them, as `BROLLY_LOG=debug`.
pub(crate) fn log_to_stderr() {
    let Ok(filter) = EnvFilter::try_from_env("BROLLY_LOG") else { return };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Else a log that cannot be written would be a panic.
    log.log_internal_errors(false).init();
}

fn unwritable(path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::input(format!("--trace {}: cannot be written: {error}", path.display()))
}
