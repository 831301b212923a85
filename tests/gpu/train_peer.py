"""Times PyTorch on the training step that brolly times: GPT-2 of 124 million parameters, as JSON.

bf16 by autocast over f32 weights, fused AdamW, flash attention, torch.compile; the median of steps.
"""

import json
import sys
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

BATCH, LENGTH, STEPS, LIMIT_S = 16, 1024, 30, 70
started = time.monotonic()


def main():
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = GPT2Config(
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa", use_cache=False
    )
    model = GPT2LMHeadModel(config).cuda()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids = torch.randint(config.vocab_size, (BATCH, LENGTH), device="cuda")
    found = {}
    for kind in ("torch.compile", "eager"):
        run = torch.compile(model) if kind == "torch.compile" else model
        times = []
        torch.cuda.reset_peak_memory_stats()
        for _ in range(STEPS):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = run(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
            if time.monotonic() - started > LIMIT_S:
                break
        times = sorted(times[5:]) or [float("nan")]
        found[kind] = {
            "tokens_per_s": BATCH * LENGTH / times[len(times) // 2],
            "peak_bytes": torch.cuda.max_memory_allocated(),
        }
        print(f"peer: {kind}: {found[kind]}", file=sys.stderr)
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        json.dump(found, out, indent=1)


if __name__ == "__main__":
    main()
