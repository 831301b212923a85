"""lm-eval's `local-completions` against the server, held against `brolly` on the same artifact.

Every log-likelihood that lm-eval makes of echoed log-probabilities must be the one that `brolly
score` gives, and every text what `brolly generate` writes. The argument is the model's folder.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer

TASKS = ["brolly_choice", "brolly_write", "brolly_rolling"]
NEW_TOKENS = 24
BEGIN = 0


def main(model):
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    samples = evaluate(model)
    problems = [*choices(samples["brolly_choice"], tokenizer)]
    problems += texts(samples["brolly_write"], tokenizer)
    problems += rolling(samples["brolly_rolling"], tokenizer)
    for problem in problems:
        print(problem, file=sys.stderr)
    count = sum(len(sample["resps"]) for task in TASKS for sample in samples[task])
    print(f"{count} requests of lm-eval, {len(problems)} answers differ from brolly's own")
    return 1 if problems or count < len(TASKS) else 0


def evaluate(model):
    os.environ["OPENAI_API_KEY"] = os.environ["BROLLY_API_KEY"]
    arguments = {
        "base_url": os.environ["BROLLY_URL"] + "/v1/completions",
        "model": "stories",
        "tokenizer": model,
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "custom_prefix_token_id": BEGIN,
        "max_length": 512,
        "num_concurrent": 4,
        "max_retries": 1,
    }
    results = simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=TASKS,
        task_manager=TaskManager(include_path=str(Path(__file__).parent), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return results["samples"]


def choices(samples, tokenizer):
    for sample in samples:
        answers = zip(sample["arguments"], sample["resps"], strict=True)
        for (begin, end), ((told, is_greedy),) in answers:
            before = encode(tokenizer, begin)
            tokens = encode(tokenizer, begin + end)
            yield from compared(begin + end, told, sum(score(tokens)[len(before) :]))
            want = generate(before, len(tokens) - len(before))["tokens"] == tokens[len(before) :]
            if is_greedy != want:
                yield f"{begin + end!r}: greedy is {is_greedy}, brolly says {want}"


def texts(samples, tokenizer):
    for sample in samples:
        ((begin, _),), ((told,),) = sample["arguments"], sample["resps"]
        want = generate(encode(tokenizer, begin), NEW_TOKENS)["text"].split(".")[0]
        if told != want:
            yield f"{begin!r}: {told!r}, brolly says {want!r}"


def rolling(samples, tokenizer):
    for sample in samples:
        ((text,),), ((told,),) = sample["arguments"], sample["resps"]
        tokens = encode(tokenizer, text)
        yield from compared(text, told, sum(score([BEGIN, *tokens])[1:]))


def compared(text, told, want):
    if not math.isclose(told, want, rel_tol=1e-9):
        yield f"{text!r}: log-likelihood {told}, brolly says {want}"


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def score(tokens):
    return brolly("score", "--tokens", ",".join(map(str, tokens)))["logprobs"]


def generate(tokens, count):
    flags = ["--tokens", ",".join(map(str, tokens)), "--max-tokens", str(count)]
    return brolly("generate", *flags, "--temperature", "0")


def brolly(command, *flags):
    words = [os.environ["BROLLY"], command, os.environ["BROLLY_ARTIFACT"], *flags, "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
