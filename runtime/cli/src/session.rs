//! A session over what a command is given.

use serve::{ServeError, Session, SessionOptions};

use crate::{
    args::Source,
    context::Context,
    failure::{Failure, Result},
    source,
};

/// Opens an artifact, or a model by way of the cache, with memory for one sequence.
pub(crate) fn open(source: &Source, cx: &Context) -> Result<Session> {
    let artifact = source::open(source, cx)?;
    let options = SessionOptions {
        threads: Some(cx.threads()),
        trace: cx.trace().cloned(),
        ..SessionOptions::default()
    };
    Session::of(artifact, options).map_err(failure)
}

/// What a session refuses is the input's fault: flags have been checked before.
pub(crate) fn failure(error: ServeError) -> Failure {
    Failure::input(error)
}
