//! Importing Hugging Face folders.

#![allow(clippy::unwrap_used, reason = "a failed step fails its test")]

mod families;
mod refused;
mod support;
mod variants;
