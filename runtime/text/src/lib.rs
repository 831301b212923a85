//! Text for language models: tokenizers, chat templates, and decoding as tokens are generated.
//!
//! What a model's folder says about text is read once into a [`TextBundle`], which an artifact
//! carries. From it come a [`Tokenizer`] (text to ids and back) and a [`ChatTemplate`] (a
//! conversation to text). While a model generates, a [`DecodeStream`] turns token ids into text
//! that never ends within a character, and a [`StopMatcher`] watches that text for stop strings:
//!
//! ```
//! # use brolly_text as text;
//! # fn generate(mut next_token: impl FnMut() -> u32) -> Result<(), Box<dyn std::error::Error>> {
//! let bundle: text::TextBundle = serde_json::from_str("{}")?;
//! let Some(tokenizer) = bundle.tokenizer()? else { return Ok(()) };
//! let prompt = tokenizer.encode("Once upon a time", true)?;
//! let eos = bundle.eos_ids(Some(&tokenizer));
//!
//! let mut stream = tokenizer.stream(true).after(&prompt)?;
//! let mut stop = text::StopMatcher::new(["\n\n"])?;
//! let mut story = String::new();
//! while stop.found().is_none() {
//!     let token = next_token();
//!     if eos.contains(&token) {
//!         break;
//!     }
//!     if let Some(piece) = stream.push(token)? {
//!         story += &stop.push(&piece).0;
//!     }
//! }
//! story += &stop.push(&stream.finish()?.unwrap_or_default()).0;
//! story += &stop.finish();
//! # Ok(())
//! # }
//! ```
//!
//! What a model may write can be held to a [`Structure`], such as a JSON schema: a
//! [`GrammarCompiler`] makes a [`Constraint`] of it, which masks tokens before they are sampled.
//! What it wrote is taken apart as it streams: a [`ReasoningParser`] separates reasoning from the
//! answer, a [`ToolParser`] separates calls of a [`Tool`] from text. For a model that does all
//! three, the reasoning comes off first, the rest goes to the tool parser, and a constraint begins
//! where the reasoning ends.
//!
//! The crate knows nothing of models, devices or sampling, and opens no file but in
//! [`TextBundle::load`]. Malformed files and hostile templates give a [`TextError`], never a panic.

mod bundle;
mod chat;
mod constraint;
mod error;
mod mark;
mod reasoning;
mod stop;
mod stream;
#[cfg(test)]
mod tiny;
mod token_bytes;
mod tokenizer;
mod tools;

pub use bundle::{EmbeddingConfig, GenerationDefaults, SpecialTokens, TextBundle};
pub use chat::{ChatRequest, ChatTemplate};
pub use constraint::{Constraint, GrammarCompiler, Structure};
pub use error::TextError;
pub use reasoning::{ReasoningEvent, ReasoningFormat, ReasoningParser};
pub use stop::StopMatcher;
pub use stream::DecodeStream;
pub use token_bytes::TokenBytes;
pub use tokenizer::{Frame, Tokenizer};
pub use tools::{FirstCall, Tool, ToolChoice, ToolEvent, ToolFormat, ToolParser};
