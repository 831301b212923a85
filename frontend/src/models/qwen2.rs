//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in some layers.
//! Yang et al. 2024, arXiv:2407.10671.

use super::{Family, Model, read};
use crate::config::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    prefix: "model.",
    encoder: false,
    read,
    ignored: read::rope_buffer,
    aliases: &[],
};

fn read(c: &Fields<'_>) -> Option<Model> {
    let traits = read::Traits {
        qkv_bias: Some(true),
        out_bias: Some(false),
        mlp_bias: Some(false),
        qk_norm: false,
        head_dim: None,
        kv_heads: Some(32),
        max_positions: 32768,
    };
    read::llama_like(c, &traits, |layers| read::mixed_windows(c, layers)).map(Model::Decoder)
}
