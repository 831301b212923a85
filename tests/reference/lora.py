"""Writes tests/data/training/lora.json: what PEFT makes of the tiny checkpoints with adapters.

    python lora.py
    python lora.py check MODEL CHECKPOINTS

Each case trains adapters on frozen weights as `training.py` trains weights: the same documents,
steps, schedule, clipping and AdamW. `A` starts from numbers that follow from tensor and element
(`start`), `B` from zero.

    rank, alpha, rslora, targets   of the adapters; targets is null for PEFT's all-linear
    loss, grad_norm                per step, the norm before clipping
    factors                        per tensor its name, L2 norm and first eight values at the end
    bf16                           losses of the first case where the model, not its adapters, is bf16

`check` loads what `brolly train` has written for a model: `final` by PEFT and `merged` by
transformers, and compares the logits of both with each other and with PEFT's own merge.
"""

import sys
from pathlib import Path

import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import training
from fixtures import DATA, deterministic, rounded, write_json
from training import CLIP_NORM, GRAD_ACCUM, LR, MICRO_BATCH, STEPS, adamw, length, rate

CASES = {
    "llama-gqa3": {"rank": 4, "alpha": 8, "rslora": False, "targets": ["q_proj", "v_proj"]},
    "gpt2-gelu-new": {"rank": 3, "alpha": 3, "rslora": False, "targets": None},
    "qwen3-mqa-tied": {
        "rank": 16,
        "alpha": 8,
        "rslora": True,
        "targets": ["k_proj", "gate_proj", "up_proj", "1.mlp.down_proj"],
    },
}


def main() -> None:
    deterministic()
    rows = training.walks(STEPS * GRAD_ACCUM * MICRO_BATCH)
    record = {case: given | train(case, rows, given) for case, given in CASES.items()}
    first = next(iter(CASES))
    record[first]["bf16"] = train(first, rows, CASES[first], torch.bfloat16)["loss"]
    write_json(DATA / "training" / "lora.json", record)
    for case, of in record.items():
        print(case, of["loss"][0], of["loss"][-1], len(of["factors"]))


def start(tensor: int, shape: torch.Size) -> torch.Tensor:
    """Numbers in -0.2..0.2 that f32 holds exactly."""
    at = numpy.arange(shape.numel())
    values = ((37 * at + 11 * tensor) % 101 - 50) / 256
    return torch.from_numpy(values.astype(numpy.float32)).reshape(shape)


def train(
    case: str, rows: numpy.ndarray, given: dict, dtype: torch.dtype = torch.float32
) -> dict:
    source = DATA / "families" / case
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager")
    config = LoraConfig(
        r=given["rank"],
        lora_alpha=given["alpha"],
        use_rslora=given["rslora"],
        target_modules=given["targets"] or "all-linear",
        fan_in_fan_out=case.startswith("gpt2"),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    # No dropout.
    model.eval()
    factors = {
        name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    for i, name in enumerate(sorted(factors)):
        if ".lora_A." in name:
            factors[name].data = start(i, factors[name].shape)
        else:
            assert not factors[name].any()
    parameters = list(factors.values())
    assert all(p.dtype == torch.float32 for p in parameters)
    optimizer = adamw(parameters)
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        first = (step - 1) * GRAD_ACCUM * MICRO_BATCH
        documents = [
            torch.from_numpy(rows[row, : length(row)]).long()
            for row in range(first, first + GRAD_ACCUM * MICRO_BATCH)
        ]
        targets = sum(len(document) - 1 for document in documents)
        optimizer.zero_grad()
        total = 0.0
        for document in documents:
            logits = model(document[None], use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum")
            (loss / targets).backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM).item())
        for group in optimizer.param_groups:
            group["lr"] = LR * rate(step) / LR
        optimizer.step()
        losses.append(total / targets)
    trained = []
    for name in sorted(factors):
        tensor = factors[name].detach()
        trained.append([name, rounded(tensor.norm().item()), rounded(tensor.flatten()[:8])])
    return {"loss": rounded(losses), "grad_norm": rounded(norms), "factors": trained}


@torch.no_grad()
def check(model: Path, checkpoints: Path) -> None:
    load = AutoModelForCausalLM.from_pretrained
    tokens = torch.arange(1, 17)[None]
    base = load(model, dtype=torch.float32)
    plain = base(tokens).logits
    adapted = PeftModel.from_pretrained(base, checkpoints / "final").eval()
    with_adapters = adapted(tokens).logits
    ours = load(checkpoints / "merged", dtype=torch.float32)(tokens).logits
    theirs = adapted.merge_and_unload()(tokens).logits
    for what, logits in [("merged", ours), ("merged by PEFT", theirs), ("the base", plain)]:
        print(what, (logits - with_adapters).abs().max().item())
    assert torch.allclose(ours, with_adapters, atol=1e-4)
    assert not torch.allclose(plain, with_adapters, atol=1e-3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
