//! Qwen3: Llama with norms of each head's queries and keys. Yang et al. 2025, arXiv:2505.09388.

use super::{Family, Model, read};
use crate::config::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    prefix: "model.",
    encoder: false,
    read,
    ignored: read::rope_buffer,
    aliases: &[],
};

fn read(c: &Fields<'_>) -> Option<Model> {
    let attention_bias = c.flag("attention_bias").or(false);
    let traits = read::Traits {
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        mlp_bias: Some(false),
        qk_norm: true,
        head_dim: Some(128),
        kv_heads: Some(32),
        max_positions: 32768,
    };
    read::llama_like(c, &traits, |layers| read::mixed_windows(c, layers)).map(Model::Decoder)
}
