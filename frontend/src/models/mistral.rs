//! Mistral: Llama with a sliding window in every layer. Jiang et al. 2023, arXiv:2310.06825.

use super::{Family, Model, read};
use crate::config::Fields;

pub(super) static FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &["MistralForCausalLM"],
    prefix: "model.",
    encoder: false,
    read,
    ignored: read::rope_buffer,
    aliases: &[],
};

fn read(c: &Fields<'_>) -> Option<Model> {
    let traits = read::Traits {
        qkv_bias: Some(false),
        out_bias: Some(false),
        mlp_bias: Some(false),
        qk_norm: false,
        head_dim: None,
        kv_heads: Some(8),
        max_positions: 4096 * 32,
    };
    read::llama_like(c, &traits, |layers| windows(c, layers)).map(Model::Decoder)
}

/// One window for all layers.
fn windows(c: &Fields<'_>, layers: u64) -> Option<Vec<Option<u64>>> {
    let window = read::sliding_window(c)?;
    let types = [("full_attention", false), ("sliding_attention", true)];
    let types = c.choices("layer_types", layers, &types).optional()?;
    if types.is_some_and(|types| types.iter().any(|sliding| *sliding != window.is_some())) {
        let why = "tells layers apart, but sliding_window holds for every layer of this family";
        c.refuse("layer_types", why);
        return None;
    }
    Some((0..layers).map(|_| window).collect())
}
