"""Writes tests/data/families/: tiny random checkpoints and what transformers computes with them.

    python families.py [NAME ...]        every case, or those named

A case is a folder as `save_pretrained` writes it, with `expect.json` beside. Everything is computed
in float32 with eager attention from the weights as they are stored. For a language model:

    prompts   token ids
    logprobs  per prompt the log-probability of each token given those before it (first null)
    greedy    for some prompts (by index) the 32 most likely next tokens and their log-probabilities

and for an encoder (token types all zero, no padding):

    embedding  mean of the last hidden state over the tokens, then L2-normalised
    first_row, last_row  of the last hidden state

A case is refused, and another seed tried, unless float64 agrees to 1e-4, the two best logits are
at least 1e-2 apart at every greedy step, and the change named in `Case.unlike` is visible.
"""

import argparse

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import logging

import checkpoints
from family_cases import CASES, Case
from fixtures import DATA, deterministic, random_tokens, rounded, write_json

NEW_TOKENS = 32
MIN_GREEDY_GAP = 1e-2
MIN_GREEDY_DISTINCT = 8
MAX_F64_DIFFERENCE = 1e-4
MIN_UNLIKE_DIFFERENCE = 5e-3
MAX_SEEDS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    deterministic()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for case in CASES:
        if not names or case.name in names:
            print(write_case(case, seed=1000 + CASES.index(case)))


def write_case(case: Case, seed: int) -> str:
    """Writes one case's folder; returns a line that says how sharp the fixture is."""
    folder = DATA / "families" / case.name
    config = AutoConfig.for_model(case.family, **case.config)
    model = checkpoints.build(config, case.head, seed)
    checkpoints.save(model, folder, case.dtype, case.shard_size)
    if case.published:
        checkpoints.rewrite_as_published(folder)

    model = checkpoints.load(folder, case.head)
    exact = checkpoints.load(folder, case.head, torch.float64)
    other = checkpoints.load(folder, case.head, **case.unlike)
    assert rope_parameters(model.config) == rope_parameters(config), case.name
    vocab = config.vocab_size
    prompts = [random_tokens(n, vocab, 100 * seed + i) for i, n in enumerate(case.lengths)]
    record = {"family": case.family, "note": case.note, "max_seq_len": case.max_seq_len}
    sharpness = {}
    if case.head == "causal":
        greedy = []
        for index in case.greedy:
            prompts[index], continuation, gap = robust_greedy(model, case, index, 100 * seed)
            greedy.append({"prompt": index} | continuation)
            sharpness["gap"] = min(gap, sharpness.get("gap", gap))
        answers, exact, other = (
            [token_logprobs(m, tokens) for tokens in prompts] for m in (model, exact, other)
        )
        record |= {
            "prompts": prompts,
            "logprobs": [[None, *rounded(answer)] for answer in answers],
            "greedy": greedy,
        }
        sharpness["mean logprob"] = torch.cat(answers).mean().item()
    else:
        answers, exact, other = (
            [hidden_states(m, tokens) for tokens in prompts] for m in (model, exact, other)
        )
        record |= {
            "prompts": prompts,
            "embedding": [rounded(embedding(answer)) for answer in answers],
            "first_row": [rounded(answer[0]) for answer in answers],
            "last_row": [rounded(answer[-1]) for answer in answers],
        }
    sharpness["f64"] = largest_difference(answers, exact)
    sharpness["unlike"] = largest_difference(answers, other)
    assert sharpness["f64"] < MAX_F64_DIFFERENCE, (case.name, sharpness)
    assert sharpness["unlike"] > MIN_UNLIKE_DIFFERENCE, (case.name, sharpness)
    write_json(folder / "expect.json", record)
    size = sum(path.stat().st_size for path in folder.iterdir())
    figures = "  ".join(f"{key} {value:.2g}" for key, value in sharpness.items())
    return f"{case.name:28} {size / 1024:5.0f} KiB  {figures}"


def rope_parameters(config) -> dict:
    """The rope fields that mean something; the older layout leaves a `type` beside `rope_type`."""
    fields = config.to_dict().get("rope_parameters") or {}
    return {key: value for key, value in fields.items() if key != "type"}


@torch.no_grad()
def logits(model: nn.Module, tokens: list[int]) -> torch.Tensor:
    """`[len(tokens), vocab]` from one uncached forward pass."""
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def token_logprobs(model: nn.Module, tokens: list[int]) -> torch.Tensor:
    """The log-probability of each token but the first, given those before: `[len(tokens) - 1]`."""
    predicted = torch.log_softmax(logits(model, tokens)[:-1], dim=-1)
    return predicted.gather(1, torch.tensor(tokens[1:], dtype=torch.long)[:, None])[:, 0]


@torch.no_grad()
def hidden_states(model: nn.Module, tokens: list[int]) -> torch.Tensor:
    """The last hidden state of an encoder, `[len(tokens), hidden]`."""
    encoder = model.base_model
    return encoder(input_ids=torch.tensor([tokens])).last_hidden_state[0]


def embedding(states: torch.Tensor) -> torch.Tensor:
    """The unit vector along the mean row."""
    return nn.functional.normalize(states.mean(dim=0), dim=0)


def greedy_continuation(model: nn.Module, prompt: list[int]) -> tuple[dict, float]:
    """The most likely next tokens, their log-probabilities, and the narrowest win."""
    tokens, logprobs, gap = list(prompt), [], float("inf")
    for _ in range(NEW_TOKENS):
        last = logits(model, tokens)[-1]
        best = last.topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        logprobs.append(torch.log_softmax(last, dim=-1)[best.indices[0]].item())
        tokens.append(best.indices[0].item())
        if gap < MIN_GREEDY_GAP:
            break
    return {"tokens": tokens[len(prompt):], "logprobs": rounded(logprobs)}, gap


def robust_greedy(model: nn.Module, case: Case, index: int, seed: int) -> tuple:
    """The first random prompt whose greedy path is neither close to a tie nor a short loop."""
    for attempt in range(MAX_SEEDS):
        tokens = random_tokens(
            case.lengths[index], model.config.vocab_size, seed + 10**6 * attempt + index
        )
        continuation, gap = greedy_continuation(model, tokens)
        distinct = len(set(continuation["tokens"]))
        if gap >= MIN_GREEDY_GAP and distinct >= MIN_GREEDY_DISTINCT:
            return tokens, continuation, gap
    raise SystemExit(f"{case.name}: no robust greedy path of length {case.lengths[index]}")


def largest_difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest absolute difference over all prompts."""
    return max((a - b).abs().max().item() for a, b in zip(left, right) if a.numel())


if __name__ == "__main__":
    main()
