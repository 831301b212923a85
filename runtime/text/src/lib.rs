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
//! The crate knows nothing of models, devices or sampling, and opens no file but in
//! [`TextBundle::load`]. Malformed files and hostile templates give a [`TextError`], never a panic.

mod bundle;
mod chat;
mod error;
mod stop;
mod stream;
#[cfg(test)]
mod tiny;
mod token_bytes;
mod tokenizer;

pub use bundle::{EmbeddingConfig, GenerationDefaults, SpecialTokens, TextBundle};
pub use chat::{ChatRequest, ChatTemplate};
pub use error::TextError;
pub use stop::StopMatcher;
pub use stream::DecodeStream;
pub use token_bytes::TokenBytes;
pub use tokenizer::{Frame, Tokenizer};
