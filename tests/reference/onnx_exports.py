"""Writes tests/data/onnx/: tiny bert and llama graphs as torch.onnx writes them.

    python onnx_exports.py [NAME ...]        every case, or those named

Both exporters (dynamo and TorchScript), eager (decomposed) and sdpa attention, several opsets:
the same attention, norm and activation arrive in a different spelling each time. A case folder
holds `model.onnx` (one with its weights in `model.onnx.data`), `case.json`, and for each run N the
arrays `N.<input>.npy` and `N.<output>.npy`, the latter computed by torch in float32 and checked
against ONNX Runtime before anything is kept. Batch and sequence are dynamic; no export has a cache.
"""

import argparse
import shutil
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from transformers import AutoConfig

import checkpoints
from family_cases import bert, decoder, rope
from fixtures import DATA, deterministic, random_tokens, write_json

MAX_RUNTIME_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Case:
    """One export: which model, by which exporter, and what the graph looks like for it."""

    name: str
    model: str
    exporter: str
    attention: str
    opset: int
    note: str
    token_types: bool = False
    external_data: bool = False


CASES = [
    Case("bert-dynamo-eager", "bert", "dynamo", "eager", 20, "LayerNormalization and Gelu nodes"),
    Case("bert-dynamo-sdpa", "bert", "dynamo", "sdpa", 18,
         "a NaN guard after softmax, gelu through Erf"),
    Case("bert-torchscript-eager", "bert", "torchscript", "eager", 13,
         "decomposed layer norm (Pow, ReduceMean, Sqrt), gelu through Erf, three inputs",
         token_types=True),
    Case("bert-torchscript-sdpa", "bert", "torchscript", "sdpa", 20,
         "the scale's square root on queries and on keys, a NaN guard after softmax"),
    Case("llama-dynamo-eager", "llama", "dynamo", "eager", 20, "Pow-based RMS norm, GQA by Expand"),
    Case("llama-dynamo-sdpa", "llama", "dynamo", "sdpa", 18,
         "a NaN guard after softmax, weights in model.onnx.data", external_data=True),
    Case("llama-torchscript-eager", "llama", "torchscript", "eager", 13,
         "shapes computed by Shape, Gather and Concat chains"),
    Case("llama-torchscript-sdpa", "llama", "torchscript", "sdpa", 20,
         "a NaN guard after softmax, GQA by Expand"),
]

# (batch, sequence, real tokens per row; None where the mask is all ones)
RUNS = [(1, 1, None), (2, 9, None), (3, 17, (17, 4, 11))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    deterministic()
    for case in CASES:
        if not names or case.name in names:
            print(write_case(case))


def write_case(case: Case) -> str:
    """Writes one case's folder; returns a line about the graph."""
    folder = DATA / "onnx" / case.name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    module = Exported(tiny_model(case.model, case.attention), case.token_types)
    vocab = module.model.config.vocab_size
    export(module, folder / "model.onnx", case.exporter, case.opset, case.external_data)
    difference = 0.0
    for index, (batch, length, real) in enumerate(RUNS):
        inputs = module.inputs(batch, length, real, vocab, seed=index)
        with torch.no_grad():
            output = module(*inputs.values()).numpy()
        for name, value in {**inputs, module.output: output}.items():
            np.save(folder / f"{index}.{name}.npy", np.asarray(value))
        difference = max(difference, runtime_difference(folder / "model.onnx", inputs, output))
    assert difference < MAX_RUNTIME_DIFFERENCE, (case.name, difference)
    write_json(folder / "case.json", {
        **asdict(case),
        "torch": torch.__version__.split("+")[0],
        "inputs": list(inputs),
        "output": module.output,
        "runs": len(RUNS),
        "attentions": module.model.config.num_hidden_layers,
    })
    nodes = Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return (
        f"{case.name:24} {size / 1024:5.0f} KiB  {sum(nodes.values()):4} nodes "
        f"{len(nodes):3} kinds  runtime {difference:.1e}"
    )


def tiny_model(family: str, attention: str) -> nn.Module:
    """Two layers of odd sizes with the random weights of `checkpoints`."""
    if family == "bert":
        fields = bert(52, 75, 97, 4) | {"max_position_embeddings": 40}
        model = checkpoints.build(AutoConfig.for_model("bert", **fields), "encoder", seed=7)
    else:
        fields = decoder(48, 75, 97, 6, 2, 12, **rope("default"))
        model = checkpoints.build(AutoConfig.for_model("llama", **fields), "causal", seed=8)
    model.set_attn_implementation(attention)
    return model


class Exported(nn.Module):
    """A model as it is exported: token ids and mask in, one tensor out, no cache."""

    def __init__(self, model: nn.Module, token_types: bool = False):
        super().__init__()
        self.model = model
        self.encoder = model.config.model_type == "bert"
        self.token_types = token_types
        self.output = "last_hidden_state" if self.encoder else "logits"
        self.eval()

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        optional = {"token_type_ids": token_type_ids} if self.encoder else {"use_cache": False}
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **optional)
        return getattr(result, self.output)

    def inputs(self, batch: int, length: int, real, vocab: int, seed: int) -> dict:
        """Random inputs `[batch, length]`, the mask zero after the first `real[row]` tokens."""
        tokens = torch.tensor(random_tokens(batch * length, vocab, seed)).reshape(batch, length)
        mask = torch.ones(batch, length, dtype=torch.long)
        for row, count in enumerate(real or ()):
            mask[row, count:] = 0
        inputs = {"input_ids": tokens, "attention_mask": mask}
        if self.token_types:
            inputs["token_type_ids"] = (torch.arange(length) > length // 2).long().expand(batch, -1)
        return inputs


def export(
    module: Exported, path: Path, exporter: str, opset: int, external_data: bool = False
) -> None:
    """Exports with dynamic batch and sequence, then drops the exporter's source locations."""
    example = module.inputs(2, 9, None, module.model.config.vocab_size, seed=0)
    names = {"input_names": list(example), "output_names": [module.output]}
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            dims = {axis: torch.export.Dim(name) for axis, name in axes.items()}
            torch.onnx.export(
                module, tuple(example.values()), path, dynamo=True, opset_version=opset,
                dynamic_shapes=tuple(dims for _ in example), external_data=external_data,
                verbose=False, **names,
            )
        else:
            torch.onnx.export(
                module, tuple(example.values()), path, dynamo=False, opset_version=opset,
                dynamic_axes={name: axes for name in [*example, module.output]}, **names,
            )
    drop_source_locations(path)


def drop_source_locations(path: Path) -> None:
    """Removes stack traces, which name files of the exporting machine; every other field stays."""
    model = onnx.load(path, load_external_data=False)
    holders = [model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions]
    for holder in [*holders, *model.graph.initializer, *model.graph.input, *model.graph.output]:
        holder.doc_string = ""
        kept = [prop for prop in holder.metadata_props if "stack_trace" not in prop.key]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    path.write_bytes(model.SerializeToString(deterministic=True))


def runtime_difference(path: Path, inputs: dict, expected: np.ndarray) -> float:
    """The largest absolute difference between ONNX Runtime and `expected`."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return float(np.abs(output - expected).max())


if __name__ == "__main__":
    main()
