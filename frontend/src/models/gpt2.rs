//! GPT-2: learned positions, LayerNorm, joined query, key and value projections. Radford et al.
//! 2019.

use super::{
    Family, Model,
    read::{self, MAX_HEADS, MAX_LAYERS, MAX_ROWS, MAX_WIDTH},
};
use crate::{
    blocks::{Block, Layout, Linear, Mlp, Norm, NormKind, Qkv, Residual, SelfAttention},
    config::Fields,
    decoder::{Decoder, Positions},
    stack::Stack,
};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &["GPT2LMHeadModel"],
    prefix: "transformer.",
    encoder: false,
    read,
    ignored: is_mask,
    aliases: &[],
};

/// The causal mask that older releases stored with each layer.
fn is_mask(name: &str) -> bool {
    name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
}

fn read(c: &Fields<'_>) -> Option<Model> {
    let hidden = c.count("n_embd", 1..=MAX_WIDTH).required();
    let inner = c.count("n_inner", 1..=MAX_WIDTH).optional();
    let vocab = c.count("vocab_size", 1..=MAX_ROWS).required();
    let layers = c.count("n_layer", 1..=MAX_LAYERS).required();
    let heads = c.count("n_head", 1..=MAX_HEADS).required();
    let max_positions = c.count("n_positions", 1..=MAX_ROWS).required();
    let eps = read::eps(c, "layer_norm_epsilon", 1e-5);
    let act = read::activation(c, "activation_function", "gelu_tanh");
    let scaled = c.flag("scale_attn_weights").or(true);
    let by_layer = c.flag("scale_attn_by_inverse_layer_idx").or(false);
    let tied = c.flag("tie_word_embeddings").or(true);
    c.only(c.flag("add_cross_attention"), &false, "cross attention is not supported");

    let (hidden, heads, eps, act) = (hidden?, heads?, eps?, act?);
    let head_dim = read::split_heads(c, "n_head", hidden, heads)?;
    let inner = inner?.unwrap_or(4 * hidden);
    let norm = |path| Norm { path, kind: NormKind::Layer, width: hidden, eps };
    let scale = if scaled? { (head_dim as f64).powf(-0.5) } else { 1.0 };
    let by_layer = by_layer?;
    let block = |layer: u64| Block {
        residual: Residual::PreNorm,
        attention_norm: norm("ln_1"),
        attention: SelfAttention {
            path: "attn",
            heads,
            kv_heads: heads,
            head_dim,
            qkv: Qkv::Joined(conv1d("attn.c_attn", hidden, 3 * hidden)),
            qk_norm: None,
            out: conv1d("attn.c_proj", hidden, hidden),
            causal: true,
            window: None,
            scale: if by_layer { scale / (layer + 1) as f64 } else { scale },
        },
        mlp_norm: norm("ln_2"),
        mlp: Mlp {
            path: "mlp",
            gate: None,
            up: conv1d("mlp.c_fc", hidden, inner),
            down: conv1d("mlp.c_proj", inner, hidden),
            act,
        },
    };
    let blocks = (0..layers?).map(block).collect();
    Some(Model::Decoder(Decoder {
        vocab: vocab?,
        hidden,
        max_positions: max_positions?,
        embedding: "wte.weight",
        positions: Positions::Learned("wpe.weight"),
        layers: Stack { path: "h", blocks, hidden, rope_planes: None },
        norm: norm("ln_f"),
        tied: tied?,
    }))
}

fn conv1d(path: &'static str, inputs: u64, outputs: u64) -> Linear {
    Linear { path, inputs, outputs, bias: true, layout: Layout::InOut }
}
