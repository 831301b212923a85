"""What every reference script shares: where fixtures go and how numbers are written.

Numbers are printed to a fixed count of significant digits so that a fixture changes only where
the model does; the tests that read them allow far more than the rounding.
"""

import json
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parent.parent / "data"


def deterministic() -> None:
    """One thread and deterministic kernels: the same machine writes the same bytes twice."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def rounded(values, digits: int = 7):
    """Rounds every float of a nested list to `digits` significant digits; `None` stays."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if isinstance(values, float) else values


def write_json(path: Path, record: dict) -> None:
    """Writes `record` with one line per field, and one per element of a field that is a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = []
    for key, value in record.items():
        if isinstance(value, list) and value:
            rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in value)
            fields.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            fields.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def random_tokens(length: int, vocab_size: int, seed: int) -> list[int]:
    """`length` token ids, uniform over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=generator).tolist()
