//! Llama. Touvron et al. 2023, arXiv:2302.13971.

use super::{Family, Model, read};
use crate::config::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    architectures: &["LlamaForCausalLM"],
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
        mlp_bias: c.flag("mlp_bias").or(false),
        qk_norm: false,
        head_dim: None,
        kv_heads: None,
        max_positions: 2048,
    };
    let all_full = |layers| Some((0..layers).map(|_| None).collect());
    read::llama_like(c, &traits, all_full).map(Model::Decoder)
}
