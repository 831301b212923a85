//! Fields and shapes that families share.

use crate::{
    blocks::{Block, Layout, Linear, Mlp, Norm, NormKind, Qkv, Residual, SelfAttention},
    config::Fields,
    decoder::{Decoder, Positions},
    rope::Rope,
    stack::Stack,
};

// Limits that no published model comes near, and below which no product of two sizes overflows.
pub(super) const MAX_LAYERS: u64 = 4096;
pub(super) const MAX_HEADS: u64 = 1 << 16;
pub(super) const MAX_WIDTH: u64 = 1 << 22;
pub(super) const MAX_ROWS: u64 = i32::MAX as u64;

/// Activations by their names in transformers.
const ACTIVATIONS: &[(&str, &str)] = &[
    ("silu", "silu"),
    ("swish", "silu"),
    ("gelu", "gelu"),
    ("gelu_python", "gelu"),
    ("gelu_new", "gelu_tanh"),
    ("gelu_fast", "gelu_tanh"),
    ("gelu_accurate", "gelu_tanh"),
    ("gelu_pytorch_tanh", "gelu_tanh"),
    ("gelu_python_tanh", "gelu_tanh"),
    ("relu", "relu"),
    ("sigmoid", "sigmoid"),
    ("tanh", "tanh"),
];

/// The operator of an activation.
pub(super) fn activation(
    c: &Fields<'_>,
    name: &str,
    default: &'static str,
) -> Option<&'static str> {
    c.choice(name, ACTIVATIONS).or(default)
}

/// The constant that a norm adds to its variance.
pub(super) fn eps(c: &Fields<'_>, name: &str, default: f64) -> Option<f64> {
    c.number(name, 0.0..=1.0).or(default)
}

/// A linear map stored as torch does.
pub(super) fn linear(path: &'static str, inputs: u64, outputs: u64, bias: bool) -> Linear {
    Linear { path, inputs, outputs, bias, layout: Layout::OutIn }
}

/// The size of each of `heads` heads that make up the hidden state.
pub(super) fn split_heads(c: &Fields<'_>, name: &str, hidden: u64, heads: u64) -> Option<u64> {
    if !hidden.is_multiple_of(heads) {
        c.refuse(name, format!("is {heads}, which does not divide the hidden size {hidden}"));
        return None;
    }
    Some(hidden / heads)
}

/// What tells the llama-like families apart.
pub(super) struct Traits {
    /// Biases of query, key and value projections.
    pub(super) qkv_bias: Option<bool>,
    /// Bias of the output projection.
    pub(super) out_bias: Option<bool>,
    /// Biases of the MLP.
    pub(super) mlp_bias: Option<bool>,
    /// Whether each head's queries and keys are normed.
    pub(super) qk_norm: bool,
    /// `head_dim` where the config does not give it; `None` splits the hidden state.
    pub(super) head_dim: Option<u64>,
    /// `num_key_value_heads` where the config does not have it; else null takes the query heads'.
    pub(super) kv_heads: Option<u64>,
    /// `max_position_embeddings` where the config does not give it.
    pub(super) max_positions: u64,
}

/// Reads a decoder with pre-norm RMSNorm, rotary embedding, grouped heads and a gated MLP; the
/// window of each layer is read by `windows`, given the number of layers.
pub(super) fn llama_like(
    c: &Fields<'_>,
    traits: &Traits,
    windows: impl FnOnce(u64) -> Option<Vec<Option<u64>>>,
) -> Option<Decoder> {
    let hidden = c.count("hidden_size", 1..=MAX_WIDTH).required();
    let inner = c.count("intermediate_size", 1..=MAX_WIDTH).required();
    let vocab = c.count("vocab_size", 1..=MAX_ROWS).required();
    let layers = c.count("num_hidden_layers", 1..=MAX_LAYERS).required();
    let heads = c.count("num_attention_heads", 1..=MAX_HEADS).required();
    let kv_heads = c.count("num_key_value_heads", 1..=MAX_HEADS).optional();
    let head_dim = c.count("head_dim", 1..=MAX_HEADS).optional();
    let max_positions = c.count("max_position_embeddings", 1..=MAX_ROWS).or(traits.max_positions);
    let eps = eps(c, "rms_norm_eps", 1e-6);
    let act = activation(c, "hidden_act", "silu");
    let tied = c.flag("tie_word_embeddings").or(false);
    let windows = layers.and_then(windows);

    let kv_heads = match (heads, kv_heads) {
        (Some(heads), Some(kv_heads)) => {
            let absent = traits.kv_heads.filter(|_| !c.has("num_key_value_heads"));
            let kv_heads = kv_heads.or(absent).unwrap_or(heads);
            if !heads.is_multiple_of(kv_heads) {
                let why = format!("is {kv_heads}, which does not divide the {heads} query heads");
                c.refuse("num_key_value_heads", why);
            }
            Some(kv_heads)
        }
        _ => None,
    };
    let head_dim = match (head_dim.map(|d| d.or(traits.head_dim)), hidden, heads) {
        (Some(Some(head_dim)), _, _) => Some(head_dim),
        (Some(None), Some(hidden), Some(heads)) => {
            split_heads(c, "num_attention_heads", hidden, heads)
        }
        _ => None,
    };
    let rope = Rope::read(c, head_dim, max_positions)?;
    let (hidden, inner, eps, heads, kv_heads) = (hidden?, inner?, eps?, heads?, kv_heads?);
    let (head_dim, qkv_bias, mlp_bias) = (head_dim?, traits.qkv_bias?, traits.mlp_bias?);

    let norm = |path, width| Norm { path, kind: NormKind::Rms, width, eps };
    let project = |path, heads| linear(path, hidden, heads * head_dim, qkv_bias);
    let block = Block {
        residual: Residual::PreNorm,
        attention_norm: norm("input_layernorm", hidden),
        attention: SelfAttention {
            path: "self_attn",
            heads,
            kv_heads,
            head_dim,
            qkv: Qkv::Separate([
                project("self_attn.q_proj", heads),
                project("self_attn.k_proj", kv_heads),
                project("self_attn.v_proj", kv_heads),
            ]),
            qk_norm: traits
                .qk_norm
                .then(|| ["self_attn.q_norm", "self_attn.k_norm"].map(|p| norm(p, head_dim))),
            out: linear("self_attn.o_proj", heads * head_dim, hidden, traits.out_bias?),
            causal: true,
            window: None,
            scale: (head_dim as f64).powf(-0.5),
        },
        mlp_norm: norm("post_attention_layernorm", hidden),
        mlp: Mlp {
            path: "mlp",
            gate: Some(linear("mlp.gate_proj", hidden, inner, mlp_bias)),
            up: linear("mlp.up_proj", hidden, inner, mlp_bias),
            down: linear("mlp.down_proj", inner, hidden, mlp_bias),
            act: act?,
        },
    };
    let with_window = |window| {
        let mut block = block.clone();
        block.attention.window = window;
        block
    };
    Some(Decoder {
        vocab: vocab?,
        hidden,
        max_positions: max_positions?,
        embedding: "embed_tokens.weight",
        positions: Positions::Rope(rope),
        layers: Stack {
            path: "layers",
            blocks: windows?.into_iter().map(with_window).collect(),
            hidden,
            rope_planes: Some(head_dim / 2),
        },
        norm: norm("norm", hidden),
        tied: tied?,
    })
}

/// `sliding_window`: absent it is 4096, null there is none.
pub(super) fn sliding_window(c: &Fields<'_>) -> Option<Option<u64>> {
    let window = c.count("sliding_window", 1..=MAX_ROWS).optional()?;
    Some(window.or_else(|| (!c.has("sliding_window")).then_some(4096)))
}

/// Windows of layers as the Qwen families give them.
pub(super) fn mixed_windows(c: &Fields<'_>, layers: u64) -> Option<Vec<Option<u64>>> {
    let used = c.flag("use_sliding_window").or(false);
    let size = sliding_window(c);
    let first = c.count("max_window_layers", 0..=MAX_LAYERS).or(28);
    let types = [("full_attention", false), ("sliding_attention", true)];
    let types = c.choices("layer_types", layers, &types).optional();
    let (used, first) = (used?, first?);
    let window = size?.filter(|_| used);
    let Some(types) = types? else {
        return Some((0..layers).map(|i| window.filter(|_| i >= first)).collect());
    };
    if window.is_none() && types.contains(&true) {
        c.refuse("layer_types", "has sliding_attention, but no sliding window is in use");
        return None;
    }
    Some(types.into_iter().map(|sliding| window.filter(|_| sliding)).collect())
}

/// Whether a tensor is the buffer of frequencies that older releases stored.
pub(super) fn rope_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}
