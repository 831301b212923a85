"""Tiny random checkpoints whose outputs say something.

The default initialisation of transformers (normal, 0.02) gives near-uniform logits and attention
that hardly depends on positions, so a wrong frequency or window would go unseen. Here every matrix
is scaled by its fan-in, attention scores spread over several nats, logits over about ten, and norm
weights and biases are all different from one and zero.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

AUTO = {"causal": AutoModelForCausalLM, "encoder": AutoModel, "masked": AutoModelForMaskedLM}

SCORE_GAIN = 1.4
LOGIT_STD = 3.0
# A tied head answers with the token it was given unless the layers drown its embedding.
TIED_OUTPUT_GAIN = 3.0


def build(config, head: str, seed: int) -> nn.Module:
    """A model of `config` with the random weights described above."""
    model = AUTO[head].from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    tied = getattr(config, "tie_word_embeddings", False)
    hidden = config.hidden_size
    for name, parameter in sorted(model.named_parameters()):
        mean, std = weight_moments(name, parameter, hidden, tied)
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(mean + std * noise)
    return model


def weight_moments(
    name: str, parameter: torch.Tensor, hidden: int, tied: bool
) -> tuple[float, float]:
    """Mean and standard deviation of one weight, from its role in the model."""
    *_, module, kind = name.split(".")
    if kind == "bias":
        return 0.0, 0.15
    if module in ("q_norm", "k_norm"):
        return SCORE_GAIN, 0.3
    if "norm" in module.lower() or module.startswith("ln_"):
        return 1.0, 0.25
    if module in ("embed_tokens", "wte", "word_embeddings"):
        return 0.0, LOGIT_STD / hidden**0.5 if tied else 1.0
    if module in ("wpe", "position_embeddings", "token_type_embeddings"):
        return 0.0, 0.4
    if module == "lm_head":
        return 0.0, LOGIT_STD / hidden**0.5
    conv1d = module in ("c_attn", "c_fc", "c_proj")
    fan_in = parameter.shape[0] if conv1d else parameter.shape[1]
    if module in ("q_proj", "k_proj", "query", "key", "c_attn"):
        gain = SCORE_GAIN
    elif tied and module in ("o_proj", "down_proj", "c_proj"):
        gain = TIED_OUTPUT_GAIN
    else:
        gain = 1.0
    return 0.0, gain / fan_in**0.5


def save(model: nn.Module, folder: Path, dtype: torch.dtype, shard_size: str) -> None:
    """Writes config.json and safetensors as `save_pretrained` does, weights stored as `dtype`."""
    if folder.exists():
        shutil.rmtree(folder)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    for path in folder.iterdir():
        path.chmod(0o644)


def load(folder: Path, head: str, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    """The checkpoint as transformers reads it, computed in `dtype`, with config `changes`."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    model = AUTO[head].from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


def rewrite_as_published(folder: Path) -> None:
    """Rewrites a saved checkpoint the way most checkpoints on the hub still are.

    Older releases of transformers wrote `rope_theta` beside `rope_scaling` instead of
    `rope_parameters`, `torch_dtype` instead of `dtype` and no `layer_types`; llama files kept
    `rotary_emb.inv_freq`, gpt2 files have no `transformer.` prefix and keep the causal mask.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("layer_types", None)
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        if rope["rope_type"] in ("linear", "dynamic", "longrope"):
            rope["type"] = rope.pop("rope_type")
        if rope.get("type") == "longrope":
            original = rope.pop("original_max_position_embeddings")
            config["original_max_position_embeddings"] = original
        config["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    if config.get("use_sliding_window") is False:
        config["sliding_window"] = 4096
    path.write_text(json.dumps(config, indent=2) + "\n")

    weights_path = folder / "model.safetensors"
    if not weights_path.exists():
        return
    weights = load_file(weights_path)
    if config["model_type"] == "llama":
        frequencies = torch.arange(0, config["head_dim"], 2) / config["head_dim"]
        for layer in range(config["num_hidden_layers"]):
            key = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            weights[key] = config["rope_theta"] ** -frequencies
    if config["model_type"] == "gpt2":
        weights = {key.removeprefix("transformer."): value for key, value in weights.items()}
        positions = config["n_positions"]
        mask = torch.tril(torch.ones(positions, positions))[None, None]
        for layer in range(config["n_layer"]):
            weights[f"h.{layer}.attn.bias"] = mask.clone()
    if config["model_type"] == "bert":
        positions = torch.arange(config["max_position_embeddings"])[None]
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""
        weights[f"{prefix}embeddings.position_ids"] = positions
    save_file(weights, weights_path, metadata={"format": "pt"})
