//! Sequences over a compiled model: generating, scoring and embedding.
//!
//! A [`Session`] opens an artifact and offers what the commands do, one call at a time:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use brolly_serve::{GenerateParams, Session, SessionOptions};
//!
//! let mut session = Session::open("model.brolly".as_ref(), SessionOptions::default())?;
//! let prompt = session.encode("Once upon a time")?;
//! let params = GenerateParams { max_tokens: Some(64), ..Default::default() };
//! let story = session.generate(&prompt, &params, |token| {
//!     eprint!("{}", token.text);
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(story.tokens.len(), story.logprobs.len());
//! # Ok::<(), brolly_serve::ServeError>(())
//! ```
//!
//! An [`Engine`] shares a model among any number of requests, from any thread:
//!
//! ```no_run
//! use brolly_serve::{Engine, EngineOptions, Event, GenerateParams, Request};
//!
//! let engine = Engine::open("model.brolly".as_ref(), &EngineOptions::default())?;
//! let prompt = engine.tokenizer().expect("a tokenizer").encode("Once upon a time", true)?;
//! let mut stream = engine.submit(Request::new(prompt, GenerateParams::default()))?;
//! while let Some(event) = stream.blocking_recv() {
//!     if let Event::Token(token) = event {
//!         eprint!("{}", token.text);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Beneath both, each in a file of its own: [`Sequence`]s, a [`BlockManager`] that hands out
//! key/value memory and finds prefixes in it again, a [`Scheduler`] that decides on each step,
//! [`Batch`]es of packed tokens for a [`StepModel`], and the [`Sampler`]. A token's distribution
//! depends on the tokens before it and on nothing else, neither on the batch nor on how the prompt
//! was cut nor on what was cached, and random numbers are a function of seed, sequence and
//! position: so answers do not depend on load.

mod batch;
mod block_manager;
mod decoder;
mod detokenizer;
mod embedder;
mod engine;
mod error;
pub mod http;
mod logits;
mod paging;
mod philox;
mod prefix_cache;
mod sampler;
mod scheduler;
mod sequence;
mod session;
#[cfg(test)]
mod testing;
mod verdict;

pub use batch::{Batch, Limits, StepModel};
pub use block_manager::{BlockCopy, BlockManager, BlockTable, Found, Opened, OutOfBlocks};
pub use decoder::{Among, blocks_of};
pub use engine::{
    BlockUse, Engine, EngineOptions, Event, EventStream, GenerateParams, Histogram, NewToken,
    PromptDone, Reply, Request, Stats, SubmitError, TokenLogprob,
};
pub use error::ServeError;
pub use logits::{Fetched, Head, Heads, Logits, RowSource};
pub use sampler::{Draw, Sampler, SamplingParams, rank, top_logprobs};
pub use scheduler::{Budget, MAX_OVERTAKEN, Part, Plan, Scheduler};
pub use sequence::{Finish, Sequence, SequenceId};
pub use session::{Generation, Session, SessionOptions, TokenEvent};
