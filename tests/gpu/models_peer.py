"""Times transformers with a static cache and torch.compile on shapes that brolly times, as JSON.

Weights are random, decoding is greedy, one step is one compiled call ("reduce-overhead": a CUDA
graph); medians of steps. Without transformers there is nothing to compare with.
"""

import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

LIMIT_S = 85
SHAPES = {
    "llama-1b": dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "llama-8b": dict(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    ),
}
RUNS = [("llama-8b", 2048, 64, 1), ("llama-8b", 512, 64, 64), ("llama-1b", 512, 64, 1)]
started = time.monotonic()


def timed(work):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def run(model, prompt, new, batch):
    config = model.config
    ids = torch.randint(config.vocab_size, (batch, prompt), device="cuda")
    cache = StaticCache(config=config, max_cache_len=prompt + new)
    found = {}

    @torch.inference_mode()
    def prefill():
        place = torch.arange(prompt, device="cuda")
        out = model(ids, past_key_values=cache, cache_position=place, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def step(token, place):
        out = model(token, past_key_values=cache, cache_position=place, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    token = prefill()
    times = []
    for _ in range(2):
        with torch.inference_mode():
            cache.reset()
        times.append(timed(prefill))
    found["prefill_s"] = min(times)
    torch._dynamo.reset()
    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=False)
    times = []
    with torch.inference_mode():
        for i in range(new):
            place = torch.tensor([prompt + i], device="cuda")
            began = token

            def work(began=began, place=place):
                nonlocal token
                token = compiled(began, place).clone()

            times.append(timed(work))
            if time.monotonic() - started > LIMIT_S:
                break
    times = sorted(times[8:]) or [float("nan")]
    found["decode_step_ms"] = times[len(times) // 2] * 1e3
    found["decode_tokens_per_s"] = batch / times[len(times) // 2]
    return found


def main():
    found = {}
    model, name_of = None, None
    for name, prompt, new, batch in RUNS:
        if time.monotonic() - started > LIMIT_S:
            print(f"peer: out of time before {name}", file=sys.stderr)
            break
        if name_of != name:
            model = None
            torch.cuda.empty_cache()
            config = LlamaConfig(**SHAPES[name], dtype="bfloat16", max_position_embeddings=8192)
            with torch.device("cuda"):
                torch.set_default_dtype(torch.bfloat16)
                model = LlamaForCausalLM(config).eval()
            name_of = name
        key = f"{name}, {prompt} + {new} tokens, {batch} streams"
        try:
            found[key] = run(model, prompt, new, batch)
            print(f"peer: {key}: {found[key]}", file=sys.stderr)
        except Exception as error:  # noqa: BLE001: a peer that fails is not our failure
            print(f"peer: {key}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        with open(sys.argv[1], "w", encoding="utf-8") as out:
            json.dump(found, out, indent=1)


if __name__ == "__main__":
    main()
