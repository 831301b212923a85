//! From prompts to events: submitting all requests of a call, and waiting for their news together.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{App, Boxed, error::ApiError, params::Params};
use crate::{
    Finish,
    engine::{Event, EventStream, PromptDone, Request, TokenLogprob},
};

/// The events of several requests as they come. Dropping it ends the requests.
pub(super) struct Events {
    streams: FuturesUnordered<Boxed<(usize, EventStream, Option<Event>)>>,
    /// Sequences of each request that have not ended.
    open: Vec<usize>,
    deadline: Instant,
    limit: Duration,
}

impl Events {
    /// Submits requests: all of them or none.
    ///
    /// # Errors
    /// Why one was not taken.
    pub(super) fn submit(app: &App, requests: Vec<Request>) -> Result<Events, ApiError> {
        let open = requests.iter().map(|request| request.n).collect();
        let streams = app.engine().submit_all(requests)?;
        let limit = app.options().request_timeout;
        let streams = streams.into_iter().enumerate().map(|(index, s)| next(index, s)).collect();
        Ok(Events { streams, open, deadline: Instant::now() + limit, limit })
    }

    /// The next event and the number of its request; `None` after the last.
    ///
    /// # Errors
    /// What went wrong with one, or 504 after the time that requests may take.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        loop {
            let news = timeout_at(self.deadline, self.streams.next()).await;
            let news = news.map_err(|_| ApiError::timeout(self.limit.as_secs()))?;
            let Some((index, stream, event)) = news else { return Ok(None) };
            let Some(event) = event else {
                if self.open[index] > 0 {
                    return Err(ApiError::internal("the engine has ended before the answer"));
                }
                continue;
            };
            match &event {
                Event::Token(token) if token.finish.is_some() => {
                    self.open[index] = self.open[index].saturating_sub(1);
                }
                Event::Failed(_) => {
                    let Event::Failed(error) = event else { continue };
                    return Err(error.into());
                }
                _ => {}
            }
            self.streams.push(next(index, stream));
            return Ok(Some((index, event)));
        }
    }
}

fn next(index: usize, mut stream: EventStream) -> Boxed<(usize, EventStream, Option<Event>)> {
    Box::pin(async move {
        let event = stream.recv().await;
        (index, stream, event)
    })
}

/// A sequence that has ended.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenLogprob>,
    pub(super) finish: Option<Finish>,
}

/// All that came of the requests of a call.
#[derive(Debug)]
pub(super) struct Outputs {
    /// By request.
    pub(super) prompts: Vec<PromptDone>,
    /// By request, then by sequence.
    pub(super) sequences: Vec<Vec<Output>>,
}

impl Outputs {
    /// Waits for all of it.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(super) async fn collect(mut events: Events, n: usize) -> Result<Outputs, ApiError> {
        let count = events.open.len();
        let sequences = (0..count).map(|_| (0..n).map(|_| Output::default()).collect());
        let prompts = (0..count).map(|_| PromptDone::default());
        let mut outputs = Outputs { prompts: prompts.collect(), sequences: sequences.collect() };
        while let Some((index, event)) = events.next().await? {
            match event {
                Event::Prompt(done) => outputs.prompts[index] = done,
                Event::Token(new) => {
                    let output = &mut outputs.sequences[index][new.sequence];
                    output.text += &new.text;
                    output.tokens.extend(new.token);
                    output.finish = new.finish.or(output.finish);
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Ok(outputs)
    }
}

/// `finish_reason` and vLLM's `stop_reason`.
pub(super) fn reasons(finish: Finish, stop: &[String]) -> (&'static str, Value) {
    match finish {
        Finish::EndOfSequence(_) => ("stop", Value::Null),
        Finish::StopToken(token) => ("stop", token.into()),
        Finish::Stop(index) => ("stop", stop.get(index).cloned().into()),
        Finish::Length => ("length", Value::Null),
        Finish::Cancelled => ("abort", Value::Null),
    }
}

/// Sets how many tokens follow a prompt: as asked for, else the default within what fits.
///
/// # Errors
/// 400 that says the bound, about the route's `field` for the prompt.
pub(super) fn fit(
    app: &App,
    params: &Params,
    prompts: &[Vec<u32>],
    asked: Option<usize>,
    default: Option<usize>,
    field: &str,
) -> Result<Vec<usize>, ApiError> {
    let bound = app.max_seq_len();
    let room = |prompt: &Vec<u32>| {
        let n = prompt.len();
        // What is only scored needs no room for a further token.
        let least = if asked == Some(0) { 0 } else { asked.unwrap_or(1) };
        if n + least > bound || n == 0 {
            let reason = match (n, asked) {
                (0, _) => "has no tokens, and the model needs one to go on from".to_owned(),
                (n, Some(asked)) if n <= bound && asked > 0 => format!(
                    "has {n} tokens, which with {asked} new ones are more than the {bound} that \
                     the model takes"
                ),
                (n, _) => {
                    format!("has {n} tokens, and the model takes {bound} with the answer's")
                }
            };
            return Err(if n == 0 {
                ApiError::field(field, reason)
            } else {
                ApiError::too_long(field, reason)
            });
        }
        Ok(asked.unwrap_or(default.unwrap_or(usize::MAX).min(bound - n)))
    };
    let rooms: Vec<usize> = prompts.iter().map(room).collect::<Result<_, _>>()?;
    let min_tokens = params.request.params.min_tokens;
    if let Some(most) = rooms.iter().find(|room| **room < min_tokens) {
        let reason = format!("is {min_tokens}, above the {most} tokens that may be generated");
        return Err(ApiError::field("min_tokens", reason));
    }
    Ok(rooms)
}

/// Turns bad words to tokens, at the beginning of a text and within one.
///
/// # Errors
/// 400 without a tokenizer.
pub(super) fn read_bad_words(app: &App, params: &mut Params) -> Result<(), ApiError> {
    if params.bad_words.is_empty() {
        return Ok(());
    }
    let tokenizer = app.tokenizer()?;
    let words = &mut params.request.params.sampling.bad_words;
    for word in &params.bad_words {
        for text in [word.clone(), format!(" {}", word.trim_start())] {
            let tokens = tokenizer.encode(&text, false)?;
            if !tokens.is_empty() && !words.contains(&tokens) {
                words.push(tokens);
            }
        }
    }
    Ok(())
}
