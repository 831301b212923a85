"""Runs an encoder's ONNX file by ONNX Runtime and torch, a round for each line of input.

    python bench_peers.py MODEL.onnx --batch 16 --tokens 128 --threads 2

Every round prints one line of JSON, tokens a second of each peer that is installed:
{"onnxruntime": 9000.0, "torch.compile": 8800.0}. torch runs the folder of the ONNX file where it
holds config.json and weights. `cargo xtask bench --python` takes turns with this.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    shape = (arguments.batch, arguments.tokens)
    ids = np.random.default_rng(0).integers(1000, 2000, shape, dtype=np.int64)
    peers: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("onnxruntime"):
        peers["onnxruntime"] = onnxruntime_run(arguments.onnx, ids, arguments.threads)
    folder = arguments.onnx.parent
    if importlib.util.find_spec("torch") and (folder / "config.json").is_file():
        peers["torch.compile"] = torch_run(folder, ids, arguments.threads)
    for run in peers.values():
        run()
    for _ in sys.stdin:
        rates = {name: ids.size / seconds(run) for name, run in peers.items()}
        print(json.dumps(rates), flush=True)


def seconds(run: Callable[[], object]) -> float:
    """The shortest of a few runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def onnxruntime_run(path: Path, ids: np.ndarray, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    values = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds = {i.name: values.get(i.name, ids) for i in session.get_inputs()}
    return lambda: session.run(None, feeds)


def torch_run(folder: Path, ids: np.ndarray, threads: int) -> Callable[[], object]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = torch.compile(AutoModel.from_pretrained(folder).eval())
    tokens = torch.from_numpy(ids)

    def run() -> object:
        with torch.inference_mode():
            return model(input_ids=tokens, attention_mask=torch.ones_like(tokens))

    return run


if __name__ == "__main__":
    main()
