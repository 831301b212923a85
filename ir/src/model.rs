//! What a runtime must know of a model besides its programs.

use serde::{Deserialize, Serialize};

/// What a model is used for, which decides the entry points that its artifact has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Predicts the next token. Source entry `forward`: `tokens i32[T]`, `positions i32[T]`,
    /// `cu_seqlens i32[S+1]`, `logit_rows i32[R]` → `logits f32[R, V]`. Serving entry `step`: the
    /// same with `slots i32[T]`, `block_tables i32[S, MB]` and key/value states.
    Decoder,
    /// Embeds texts. Entry `embed`: `tokens i32[T]`, `positions i32[T]`, `cu_seqlens i32[S+1]` →
    /// `embeddings f32[S, H]`.
    Encoder,
    /// Any graph. Entry `main` with the graph's own inputs and outputs.
    Graph,
}

/// A model's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Architecture as the source names it: `LlamaForCausalLM`.
    pub architecture: String,
    /// What it is used for.
    pub kind: ModelKind,
    /// Number of tokens; 0 for graphs without.
    pub vocab_size: u64,
    /// Size of the hidden state or embedding; 0 for graphs without.
    pub hidden_size: u64,
    /// Longest sequence that the compiled form takes.
    pub max_seq_len: u64,
    /// Parameters, tied ones counted once.
    pub parameters: u64,
}
