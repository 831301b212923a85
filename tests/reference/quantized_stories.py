"""What 8- and 4-bit weights cost the small language model in llama.cpp's formats.

    python quantized_stories.py

Writes `tests/data/quantized/stories.json`: sequences that the model itself has sampled at temperature 1,
its mean loss on them in nats a token, and by how much Q8_0 and Q4_0 raise its perplexity. On text that a
model has sampled the expected rise is a Kullback-Leibler divergence, never negative; a tale of 500
tokens gives about as much noise as 8 bits give signal.

Weights and activations go through the quantisers of llama.cpp's own `gguf` package. As in llama.cpp,
products take activations as Q8_0, and head and embedding, which are tied, stay Q8_0 under Q4_0: that is
what `llama-quantize` falls back to where a row is no multiple of 256.
"""

import numpy as np
import torch
from fixtures import DATA, deterministic, rounded, write_json
from gguf import GGMLQuantizationType as Format
from gguf import quants
from transformers import AutoModelForCausalLM

MODEL = DATA / "stories"
SEQUENCES, LENGTH, SEED = 48, 320, 1


def load():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def through(kind: Format, x: torch.Tensor) -> torch.Tensor:
    """`x` after a round trip through a format; rows are filled up with zeros to whole blocks."""
    width = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -width % 32)).numpy().astype(np.float32)
    rows = padded.reshape(-1, padded.shape[-1])
    back = quants.dequantize(quants.quantize(rows, kind), kind)
    return torch.from_numpy(back.reshape(padded.shape)[..., :width].copy())


def quantized(weights: Format):
    """The model with its products in `weights` times Q8_0, head and embedding Q8_0."""
    model = load()
    head = model.lm_head
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            kind = Format.Q8_0 if module is head else weights
            module.weight = torch.nn.Parameter(through(kind, module.weight.detach()))
            module.register_forward_pre_hook(lambda _, args: (through(Format.Q8_0, args[0]),))
    model.model.embed_tokens.weight = torch.nn.Parameter(head.weight.detach().clone())
    return model


def loss(model, tokens: torch.Tensor) -> float:
    """Mean negative log-likelihood of all tokens but the first of each row, in nats."""
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1].double()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


def main() -> None:
    deterministic()
    model = load()
    start = torch.full((SEQUENCES, 1), model.config.bos_token_id)
    torch.manual_seed(SEED)
    tokens = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=LENGTH - 1,
        max_new_tokens=LENGTH - 1,
        pad_token_id=0,
    )
    plain = loss(model, tokens)
    rise = {
        name: (np.exp(loss(quantized(kind), tokens) - plain) - 1) * 100
        for name, kind in [("q8_0", Format.Q8_0), ("q4_0", Format.Q4_0)]
    }
    assert 0 < rise["q8_0"] < 0.2 < rise["q4_0"] < 10, rise
    record = {
        "loss": rounded(plain),
        "q8_0_rise_percent": rounded(float(rise["q8_0"]), 4),
        "q4_0_rise_percent": rounded(float(rise["q4_0"]), 4),
        "sequences": tokens.tolist(),
    }
    write_json(DATA / "quantized" / "stories.json", record)
    print({k: v for k, v in record.items() if k != "sequences"})


if __name__ == "__main__":
    main()
