"""Writes tests/data/training/: what a plain PyTorch loop makes of the tiny checkpoints.

    python training.py

Each case starts from a folder of tests/data/families/ and trains for 100 steps: AdamW with
decoupled decay of matrices alone, cosine schedule with warmup, clipping by the global norm. A step
takes two micro-steps of four documents each, whose lengths differ; its loss is the mean over all
targets of the step. Documents are computed one by one, so nothing is padded or masked. They are
walks in which a token is usually a function of the one before it, so there is something to learn.

    loss, grad_norm  per step, the norm before clipping
    weights          per tensor its name, L2 norm and first eight values after the last step

`documents.npy` holds the tokens of all documents, one a row; row r has `length(r)` of them.
`bf16.json` has the losses of models in bf16, whose AdamW follows f32 copies of the weights, and
`rules.json` those of the first case under the other rules of `optimizers.py`, in f32.
"""

import math

import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import optimizers
from fixtures import DATA, deterministic, rounded, write_json

CASES = ["llama-gqa3", "qwen3-mqa-tied", "gpt2-gelu-new", "mistral-window7"]
STEPS, GRAD_ACCUM, MICRO_BATCH, LONGEST = 100, 2, 4, 33
LR, MIN_LR, WARMUP, ADAMW_LR = 3e-3, 3e-4, 10, 1e-3
BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0
# Every vocabulary has these tokens.
TOKENS = 96


def main() -> None:
    deterministic()
    folder = DATA / "training"
    folder.mkdir(parents=True, exist_ok=True)
    rows = walks(STEPS * GRAD_ACCUM * MICRO_BATCH)
    numpy.save(folder / "documents.npy", rows)
    for case in CASES:
        record = train(case, rows)
        write_json(folder / f"{case}.json", record)
        print(case, record["loss"][0], record["loss"][-1], max(record["grad_norm"]))
    narrow = {case: train(case, rows, dtype=torch.bfloat16)["loss"] for case in CASES}
    write_json(folder / "bf16.json", narrow)
    rules = {rule: train(CASES[0], rows, rule)["loss"] for rule in RULES}
    write_json(folder / "rules.json", rules)
    for name, losses in (narrow | rules).items():
        print(name, losses[0], losses[-1])


def length(row: int) -> int:
    """Tokens of a document, 9 to 33."""
    return 9 + 7 * row % 25


def walks(count: int) -> numpy.ndarray:
    """Documents of `LONGEST` tokens each."""
    generator = numpy.random.default_rng(5)
    rows = generator.integers(0, TOKENS, (count, LONGEST), dtype=numpy.int32)
    for at in range(1, LONGEST):
        follows = generator.random(count) < 0.8
        rows[follows, at] = (rows[follows, at - 1] * 7 + 3) % TOKENS
    return rows


def rate(step: int) -> float:
    """Learning rate of a step, which count from 1."""
    if step <= WARMUP:
        return LR * step / WARMUP
    t = (step - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * t))


def adamw(parameters: list, lr: float = LR) -> torch.optim.Optimizer:
    groups = optimizers.decaying(parameters)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS)


def muon(model: torch.nn.Module, parameters: list) -> list[torch.optim.Optimizer]:
    """Muon for matrices of layers, AdamW with its own rate for the rest."""
    in_layers = [".layers." in name for name, _ in model.named_parameters()]
    pairs = list(zip(in_layers, parameters))
    matrices = [p for inside, p in pairs if inside and p.dim() == 2]
    rest = [p for inside, p in pairs if not (inside and p.dim() == 2)]
    of_matrices = torch.optim.Muon(matrices, lr=LR, momentum=0.95, weight_decay=WEIGHT_DECAY)
    return [of_matrices, adamw(rest, ADAMW_LR)]


RULES = {
    "adamw": lambda model, ps: [adamw(ps)],
    "lion": lambda model, ps: [optimizers.Lion(optimizers.decaying(ps), lr=LR, betas=(0.9, 0.99))],
    "sgd": lambda model, ps: [
        optimizers.DecoupledSGD(
            optimizers.decaying(ps, "decay"), lr=LR, momentum=0.9, nesterov=True
        )
    ],
    "adafactor": lambda model, ps: [torch.optim.Adafactor(optimizers.decaying(ps), lr=LR)],
    "muon": muon,
}


def train(
    case: str, rows: numpy.ndarray, rule: str = "adamw", dtype: torch.dtype = torch.float32
) -> dict:
    source = DATA / "families" / case
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager")
    # No dropout.
    model.eval()
    full = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    masters = [torch.nn.Parameter(p.detach().clone()) for p in full.parameters()]
    rules = RULES[rule](model, masters)
    highest = [[group["lr"] for group in optimizer.param_groups] for optimizer in rules]
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        first = (step - 1) * GRAD_ACCUM * MICRO_BATCH
        documents = [
            torch.from_numpy(rows[row, : length(row)]).long()
            for row in range(first, first + GRAD_ACCUM * MICRO_BATCH)
        ]
        targets = sum(len(document) - 1 for document in documents)
        for master in masters:
            master.grad = torch.zeros_like(master)
        total = 0.0
        for document in documents:
            model.zero_grad()
            logits = model(document[None], use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum")
            (loss / targets).backward()
            total += loss.item()
            for master, p in zip(masters, model.parameters()):
                master.grad += p.grad
        norms.append(torch.nn.utils.clip_grad_norm_(masters, CLIP_NORM).item())
        for optimizer, rates in zip(rules, highest):
            for group, lr in zip(optimizer.param_groups, rates):
                group["lr"] = lr * rate(step) / LR
            optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, model.parameters()):
                p.copy_(master)
        losses.append(total / targets)
    trained = {name: p for (name, _), p in zip(model.named_parameters(), masters)}
    weights = []
    for name in load_file(source / "model.safetensors"):
        tensor = trained[name].detach()
        weights.append([name, rounded(tensor.norm().item()), rounded(tensor.flatten()[:8])])
    return {"loss": rounded(losses), "grad_norm": rounded(norms), "weights": weights}


if __name__ == "__main__":
    main()
