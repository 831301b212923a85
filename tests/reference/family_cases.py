"""The table of family checkpoints: what is odd about each, and the change that each must notice."""

from dataclasses import dataclass

import torch

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    """One checkpoint and what is asked of it.

    `lengths` are prompt lengths and `greedy` indexes those that are continued by 32 tokens.
    `max_seq_len` is the bound to compile with: it picks the regime of frequencies that depend on
    the length. `unlike` is a change of the config under which the same weights must answer
    visibly differently: a fixture that can't tell the two apart is refused.
    """

    name: str
    family: str
    note: str
    config: dict
    unlike: dict
    lengths: tuple[int, ...] = (1, 2, 5, 16, 17, 64, 130, 300)
    greedy: tuple[int, ...] = (2, 4, 6)
    max_seq_len: int = 340
    dtype: torch.dtype = F32
    head: str = "causal"
    published: bool = False
    shard_size: str = "1GB"


def decoder(hidden, ffn, vocab, heads, kv_heads, head_dim=None, layers=2, **more) -> dict:
    """Config fields shared by the llama-like families."""
    head_dim = {} if head_dim is None else {"head_dim": head_dim}
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **head_dim,
        **more,
    }


def rope(rope_type: str, theta: float = 10000.0, **more) -> dict:
    """The `rope_parameters` field."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **more}}


PLAIN = rope("default")
SHORT_FACTOR = [1.0, 1.02, 1.1, 1.15, 1.3, 1.5, 1.9, 2.2]
LONG_FACTOR = [1.05, 1.4, 2.0, 3.1, 4.7, 6.0, 8.5, 12.0]

LLAMA = [
    Case(
        "llama-gqa3", "llama", "6 query heads on 2 kv heads, head_dim 14 where hidden/heads is 9",
        decoder(54, 83, 179, 6, 2, 14, **rope("default", 500000.0)), PLAIN,
    ),
    Case(
        "llama-mqa-bias", "llama", "5/1 heads, tied, attention and MLP biases, gelu, three layers",
        decoder(40, 75, 97, 5, 1, layers=3, attention_bias=True, mlp_bias=True,
                hidden_act="gelu", tie_word_embeddings=True, **PLAIN),
        {"hidden_act": "gelu_new"},
        lengths=(1, 2, 15, 33, 64, 65, 127, 300), greedy=(2, 3, 6),
    ),
    Case(
        "llama-sharded", "llama", "4/4 heads, sharded with an index, large rms_norm_eps, gelu_new",
        decoder(52, 101, 131, 4, 4, 20, rms_norm_eps=1e-2, hidden_act="gelu_new", **PLAIN),
        {"rms_norm_eps": 1e-5},
        lengths=(1, 5, 16, 17, 127, 130), greedy=(1, 3, 5), shard_size="100KB",
    ),
    Case(
        "llama-bf16", "llama", "bf16 weights, relu, vocabulary 331",
        decoder(52, 147, 331, 4, 2, 26, hidden_act="relu", **PLAIN), {"hidden_act": "silu"},
        dtype=BF16,
    ),
    Case(
        "llama-f16-published", "llama", "f16 weights, config and tensors in the older layout",
        decoder(60, 117, 173, 6, 3, 10, tie_word_embeddings=True, **PLAIN),
        rope("default", 5000.0), dtype=F16, published=True,
        lengths=(1, 2, 15, 64, 127, 130, 300), greedy=(2, 4),
    ),
    Case(
        "llama-rope-linear", "llama", "linear scaling by 2.5, older config layout (type)",
        decoder(48, 83, 113, 3, 1, **rope("linear", factor=2.5)), PLAIN, published=True,
    ),
    Case(
        "llama-rope-dynamic", "llama", "dynamic NTK within max_position_embeddings: unscaled",
        decoder(48, 83, 113, 3, 3, **rope("dynamic", factor=4.0)),
        rope("linear", factor=4.0), dtype=BF16,
    ),
    Case(
        "llama-rope-dynamic-long", "llama",
        "dynamic NTK beyond max_position_embeddings (128): exact at the compiled bound of 300 only",
        decoder(48, 83, 113, 3, 1, **rope("dynamic", factor=4.0))
        | {"max_position_embeddings": 128},
        PLAIN, published=True, dtype=BF16, lengths=(300, 300), greedy=(), max_seq_len=300,
    ),
    Case(
        "llama-rope-yarn", "llama", "yarn with its defaults: attention factor from the factor",
        decoder(54, 83, 113, 3, 1,
                **rope("yarn", factor=8.0, original_max_position_embeddings=64)),
        rope("yarn", factor=8.0, original_max_position_embeddings=64, attention_factor=1.0),
        dtype=BF16,
    ),
    Case(
        "llama-rope-yarn-mscale", "llama",
        "yarn with mscale, beta_fast, beta_slow and no truncation",
        decoder(48, 83, 113, 3, 1,
                **rope("yarn", 1000.0, factor=4.0, original_max_position_embeddings=128, mscale=1.5,
                       mscale_all_dim=0.6, beta_fast=16.0, beta_slow=2.0, truncate=False)),
        rope("yarn", 1000.0, factor=4.0, original_max_position_embeddings=128, mscale=1.5,
             mscale_all_dim=0.6, beta_fast=16.0, beta_slow=2.0, truncate=True),
        dtype=F16,
    ),
    Case(
        "llama-rope-llama3", "llama", "llama3 scaling with kept, blended and divided bands",
        decoder(64, 83, 113, 4, 2,
                **rope("llama3", 50000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=64)),
        rope("default", 50000.0), published=True,
    ),
    Case(
        "llama-rope-longrope-short", "llama",
        "longrope within original_max_position_embeddings (256): short factors",
        decoder(48, 83, 113, 3, 1,
                **rope("longrope", factor=4.0, original_max_position_embeddings=256,
                       short_factor=SHORT_FACTOR, long_factor=LONG_FACTOR))
        | {"max_position_embeddings": 1024},
        rope("longrope", factor=4.0, original_max_position_embeddings=256,
             short_factor=LONG_FACTOR, long_factor=LONG_FACTOR),
        dtype=BF16, lengths=(1, 2, 16, 17, 65, 127, 200), greedy=(2, 4, 6), max_seq_len=256,
    ),
    Case(
        "llama-rope-longrope-long", "llama",
        "longrope beyond original_max_position_embeddings (64): long factors, older config layout "
        "with the original length at the top level and no factor",
        decoder(48, 83, 113, 3, 3,
                **rope("longrope", original_max_position_embeddings=64,
                       short_factor=SHORT_FACTOR, long_factor=LONG_FACTOR)),
        rope("longrope", original_max_position_embeddings=64,
             short_factor=SHORT_FACTOR, long_factor=SHORT_FACTOR),
        dtype=F16, published=True, lengths=(65, 127, 130, 300), greedy=(0, 2),
    ),
]

MISTRAL = [
    Case(
        "mistral-window7", "mistral", "a window of 7 keys, itself included; 6/2 heads",
        decoder(54, 77, 149, 6, 2, 14, sliding_window=7, **PLAIN), {"sliding_window": 8},
        lengths=(1, 5, 15, 16, 17, 64, 65, 300), greedy=(1, 4, 6),
    ),
    Case(
        "mistral-window64", "mistral",
        "a window on the block border, 5/1 heads, tied, older layout",
        decoder(40, 91, 131, 5, 1, layers=3, sliding_window=64, tie_word_embeddings=True,
                **rope("default", 1000000.0)),
        {"sliding_window": 63}, lengths=(2, 33, 64, 65, 127, 130, 300), greedy=(1, 2, 5),
        published=True,
    ),
    Case(
        "mistral-window50-f16", "mistral", "f16 weights, a window of 50, 4/4 heads, sharded",
        decoder(52, 147, 131, 4, 4, 18, sliding_window=50, **PLAIN), {"sliding_window": None},
        dtype=F16, lengths=(5, 17, 33, 65, 127, 300), greedy=(2, 3, 4), shard_size="80KB",
    ),
    Case(
        "mistral-full", "mistral", "sliding_window null: full causal attention",
        decoder(48, 75, 97, 4, 2, sliding_window=None, **rope("default", 1000000.0)),
        {"sliding_window": 290}, dtype=BF16, greedy=(1, 5),
    ),
]

QWEN2 = [
    Case(
        "qwen2-tied", "qwen2", "tied, 6/2 heads, biases on q, k and v alone, older layout with an "
        "unused sliding_window",
        decoder(60, 99, 151, 6, 2, tie_word_embeddings=True, **rope("default", 1000000.0)), PLAIN,
        published=True,
    ),
    Case(
        "qwen2-mixed-window", "qwen2",
        "layer 0 full, layers 1 and 2 with a window of 20; 5/1 heads",
        decoder(40, 75, 131, 5, 1, layers=3, use_sliding_window=True, sliding_window=20,
                max_window_layers=1, **PLAIN),
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        lengths=(1, 15, 17, 33, 65, 127, 300), greedy=(2, 3, 5),
    ),
    Case(
        "qwen2-bf16", "qwen2", "bf16 weights, 4/4 heads, yarn as Qwen2.5 sets it for long inputs",
        decoder(56, 147, 331, 4, 4,
                **rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=128)),
        PLAIN, dtype=BF16, published=True, lengths=(1, 2, 16, 64, 127, 130, 300),
    ),
]

QWEN3 = [
    Case(
        "qwen3-gqa", "qwen3",
        "query and key norms, head_dim 20 where hidden/heads is 9; 6/2 heads",
        decoder(54, 77, 97, 6, 2, 20, **rope("default", 1000000.0)), PLAIN,
    ),
    Case(
        "qwen3-mqa-tied", "qwen3", "5/1 heads, tied, attention biases, gelu_new, eps 1e-2",
        decoder(45, 75, 149, 5, 1, 12, layers=3, attention_bias=True, hidden_act="gelu_new",
                tie_word_embeddings=True, rms_norm_eps=1e-2, **PLAIN),
        {"rms_norm_eps": 1e-5}, lengths=(1, 5, 15, 33, 65, 127, 300), greedy=(1, 3, 5),
    ),
    Case(
        "qwen3-f16", "qwen3",
        "f16 weights, 4/4 heads, hidden not a multiple of the heads, older layout",
        decoder(50, 147, 211, 4, 4, 16, **rope("default", 1000000.0)), PLAIN,
        dtype=F16, published=True, lengths=(2, 16, 17, 64, 130, 300), greedy=(0, 3, 4),
    ),
]


def gpt2(embd, heads, vocab, positions=340, layers=2, **more) -> dict:
    """Config fields of the gpt2 family."""
    return {
        "n_embd": embd, "n_head": heads, "n_layer": layers, "vocab_size": vocab,
        "n_positions": positions, "bos_token_id": None, "eos_token_id": None, **more,
    }


GPT2 = [
    Case(
        "gpt2-gelu-new", "gpt2", "head_dim 11, n_inner null (four times the width), tied",
        gpt2(44, 4, 131), {"activation_function": "relu"},
    ),
    Case(
        "gpt2-odd-inner", "gpt2", "n_inner 147, relu, untied, bf16, large layer_norm_epsilon",
        gpt2(45, 5, 97, n_inner=147, activation_function="relu", layer_norm_epsilon=1e-2,
             tie_word_embeddings=False),
        {"layer_norm_epsilon": 1e-5}, dtype=BF16,
        lengths=(1, 5, 15, 33, 65, 127, 300), greedy=(1, 3, 5),
    ),
    Case(
        "gpt2-published", "gpt2",
        "no transformer. prefix, causal mask among the tensors, head_dim 9",
        gpt2(36, 4, 113, positions=104, activation_function="gelu"),
        {"activation_function": "relu"}, published=True,
        lengths=(1, 2, 16, 17, 64, 65, 72), greedy=(2, 4, 6), max_seq_len=104,
    ),
    Case(
        "gpt2-layer-scale", "gpt2",
        "f16, scores also divided by the layer's number, three layers, one head",
        gpt2(38, 1, 151, layers=3, n_inner=77, scale_attn_by_inverse_layer_idx=True),
        {"scale_attn_by_inverse_layer_idx": False}, dtype=F16,
        lengths=(1, 5, 17, 64, 127, 300), greedy=(1, 3, 4),
    ),
]


def bert(hidden, ffn, vocab, heads, layers=2, **more) -> dict:
    """Config fields of the bert family."""
    return {
        "hidden_size": hidden, "intermediate_size": ffn, "vocab_size": vocab,
        "num_attention_heads": heads, "num_hidden_layers": layers,
        "max_position_embeddings": 304, **more,
    }


BERT = [
    Case(
        "bert-gelu", "bert", "head_dim 13, gelu, the default layer_norm_eps of 1e-12",
        bert(52, 99, 131, 4), {"hidden_act": "relu"}, head="encoder", max_seq_len=304,
    ),
    Case(
        "bert-relu-published", "bert",
        "three layers, relu, layer_norm_eps 1e-2, position_ids among "
        "the tensors",
        bert(35, 77, 97, 5, layers=3, hidden_act="relu", layer_norm_eps=1e-2),
        {"layer_norm_eps": 1e-5}, head="encoder", max_seq_len=304, published=True,
        lengths=(1, 5, 15, 17, 33, 65, 127, 300),
    ),
    Case(
        "bert-masked-lm", "bert",
        "saved with a language-model head: bert. prefix, no pooler; bf16",
        bert(48, 99, 331, 3, hidden_act="gelu_new"), {"hidden_act": "relu"}, head="masked",
        max_seq_len=304,
        dtype=BF16, lengths=(1, 2, 16, 64, 127, 130, 300),
    ),
    Case(
        "bert-f16-sharded", "bert", "f16 weights, one head, sharded with an index",
        bert(38, 83, 149, 1), {"hidden_act": "relu"}, head="encoder", max_seq_len=304, dtype=F16,
        shard_size="40KB", lengths=(1, 5, 15, 17, 65, 300),
    ),
]

CASES = LLAMA + MISTRAL + QWEN2 + QWEN3 + GPT2 + BERT
