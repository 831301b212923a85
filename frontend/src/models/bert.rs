//! BERT as an encoder of texts: learned positions, post-norm LayerNorm. Devlin et al. 2018,
//! arXiv:1810.04805; pooled as sentence-transformers does, Reimers & Gurevych 2019,
//! arXiv:1908.10084.

use super::{
    Family, Model,
    read::{self, MAX_HEADS, MAX_LAYERS, MAX_ROWS, MAX_WIDTH, linear},
};
use crate::{
    blocks::{Block, Mlp, Norm, NormKind, Qkv, Residual, SelfAttention},
    config::Fields,
    encoder::Encoder,
    sentence,
    stack::Stack,
};

pub(super) static FAMILY: Family = Family {
    model_type: "bert",
    architectures: &["BertModel", "BertForMaskedLM", "BertForPreTraining"],
    prefix: "bert.",
    encoder: true,
    read,
    ignored: is_unused,
    aliases: &[("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")],
};

/// Heads of pretraining, and buffers that older releases stored.
fn is_unused(name: &str) -> bool {
    let buffers = ["embeddings.position_ids", "embeddings.token_type_ids"];
    buffers.contains(&name) || name.starts_with("pooler.") || name.starts_with("cls.")
}

fn read(c: &Fields<'_>) -> Option<Model> {
    let hidden = c.count("hidden_size", 1..=MAX_WIDTH).required();
    let inner = c.count("intermediate_size", 1..=MAX_WIDTH).required();
    let vocab = c.count("vocab_size", 1..=MAX_ROWS).required();
    let layers = c.count("num_hidden_layers", 1..=MAX_LAYERS).required();
    let heads = c.count("num_attention_heads", 1..=MAX_HEADS).required();
    let max_positions = c.count("max_position_embeddings", 1..=MAX_ROWS).required();
    let token_types = c.count("type_vocab_size", 1..=MAX_ROWS).or(2);
    let eps = read::eps(c, "layer_norm_eps", 1e-12);
    let act = read::activation(c, "hidden_act", "gelu");
    let kind = c.text("position_embedding_type");
    c.only(kind, &"absolute", "other kinds of positions are not supported");
    c.only(c.flag("is_decoder"), &false, "only encoders are supported");
    c.only(c.flag("add_cross_attention"), &false, "cross attention is not supported");

    let (hidden, inner, heads, eps, act) = (hidden?, inner?, heads?, eps?, act?);
    let head_dim = read::split_heads(c, "num_attention_heads", hidden, heads)?;
    let norm = |path| Norm { path, kind: NormKind::Layer, width: hidden, eps };
    let block = Block {
        residual: Residual::PostNorm,
        attention_norm: norm("attention.output.LayerNorm"),
        attention: SelfAttention {
            path: "attention.self",
            heads,
            kv_heads: heads,
            head_dim,
            qkv: Qkv::Separate(
                ["attention.self.query", "attention.self.key", "attention.self.value"]
                    .map(|path| linear(path, hidden, hidden, true)),
            ),
            qk_norm: None,
            out: linear("attention.output.dense", hidden, hidden, true),
            causal: false,
            window: None,
            scale: (head_dim as f64).powf(-0.5),
        },
        mlp_norm: norm("output.LayerNorm"),
        mlp: Mlp {
            path: "intermediate",
            gate: None,
            up: linear("intermediate.dense", hidden, inner, true),
            down: linear("output.dense", inner, hidden, true),
            act,
        },
    };
    let blocks = (0..layers?).map(|_| block.clone()).collect();
    Some(Model::Encoder(Encoder {
        vocab: vocab?,
        hidden,
        max_positions: max_positions?,
        token_types: token_types?,
        tables: [
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "embeddings.token_type_embeddings.weight",
        ],
        norm: norm("embeddings.LayerNorm"),
        layers: Stack { path: "encoder.layer", blocks, hidden, rope_planes: None },
        pooling: sentence::DEFAULT,
    }))
}
