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
        gpu: cx.gpu(),
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

/// Token ids of a prompt's text.
///
/// # Errors
/// For an empty text, though the model may put a token before it: that is hardly what was meant.
pub(crate) fn encode(session: &Session, prompt: &str) -> Result<Vec<u32>> {
    if prompt.is_empty() {
        let hint = "give a text, or the model's own first token with --tokens";
        return Err(Failure::input(format!("--prompt: is empty; {hint}")));
    }
    session.encode(prompt).map_err(failure)
}
