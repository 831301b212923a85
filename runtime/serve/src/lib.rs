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
//! Beneath it, each in a file of its own: a [`BlockPool`] that hands out key/value memory,
//! [`Batch`]es of packed tokens for a [`StepModel`], the [`Sampler`], and the loop that advances
//! [sequences](generate). A token's distribution depends on the tokens before it and on nothing
//! else, neither on the batch nor on how the prompt was cut, and random numbers are a function of
//! seed, sequence and position: so answers do not depend on load.

mod batch;
mod block_pool;
mod decoder;
mod detokenizer;
mod embedder;
mod error;
pub mod generate;
mod philox;
mod sampler;
mod score;
mod session;
#[cfg(test)]
mod testing;
mod verdict;

pub use batch::{Batch, Limits, Logits, StepModel};
pub use block_pool::{BlockPool, BlockTable, OutOfBlocks};
pub use error::ServeError;
pub use generate::Finish;
pub use sampler::{Draw, Sampler, SamplingParams, rank, top_logprobs};
pub use session::{GenerateParams, Generation, Session, SessionOptions, TokenEvent};
