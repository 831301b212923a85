"""Trains the language model of `tests/data/stories`, a Llama of 2.8 M parameters.

    python stories_corpus.py BOOKS_DIR corpus.jsonl
    python train_stories.py corpus.jsonl ../data/stories

The recipe: byte-level BPE of 2048 tokens; documents shuffled and joined as `<s> text </s>`; windows
of 256 tokens, and of 512 for the last fifth of the steps, so that all 512 positions are learned;
Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for the embedding and the norms; one
learning rate for both, warmed up and then falling linearly to zero; matrix products in bf16, all
else and the master weights in f32. One to one and a half hours on one CPU core with bf16
instructions.

The folder is a complete Hugging Face checkpoint from the first save on; weights are stored in bf16.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 1812
BOS, EOS = "<s>", "</s>"

# config.json as checkpoints carry it; `LlamaConfig` takes the same names.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
GENERATION_CONFIG = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.9,
    "max_length": 512,
}
# It has never seen a conversation: it goes on from what was said.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "model_max_length": CONFIG["max_position_embeddings"],
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}

BATCH_TOKENS = 4096
SHORT_WINDOW, LONG_WINDOW, LONG_SHARE = 256, 512, 0.2
LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY, CLIP_NORM = 5e-3, 100, 0.1, 1.0
HELD_OUT = 50  # one document in so many is never trained on
EVAL_WINDOWS = 48


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with GPT-2's word splitting; puts `<s>` before what it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"],
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def token_stream(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All documents as one row of token ids: `<s> text </s> <s> text </s> ..`."""
    eos = tokenizer.token_to_id(EOS)
    return torch.tensor([i for e in tokenizer.encode_batch(texts) for i in (*e.ids, eos)])


def windows(stream: torch.Tensor, length: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of windows `[B, length + 1]`, endless; every epoch cuts the stream at new places."""
    batch = BATCH_TOKENS // length
    while True:
        phase = int(torch.randint(length, (), generator=rng))
        starts = torch.arange(phase, len(stream) - length, length)
        for some in starts[torch.randperm(len(starts), generator=rng)].split(batch):
            yield torch.stack([stream[s : s + length + 1] for s in some])


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each next token, in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor) -> float:
    """Loss over windows of `SHORT_WINDOW` tokens evenly spread over the held-out documents."""
    starts = torch.linspace(0, len(stream) - SHORT_WINDOW - 1, EVAL_WINDOWS).long()
    batches = torch.stack([stream[s : s + SHORT_WINDOW + 1] for s in starts]).split(16)
    return sum(loss_of(model, b).item() for b in batches) / len(batches)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the tied embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    embedding = [p for n, p in model.named_parameters() if "embed" in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    return [
        torch.optim.Muon(
            matrices, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": embedding, "weight_decay": WEIGHT_DECAY},
                {"params": norms, "weight_decay": 0.0},
            ],
            lr=LEARNING_RATE,
            betas=(0.9, 0.95),
        ),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero at `steps`."""
    warmup = min(WARMUP_STEPS, steps // 10 + 1)
    return LEARNING_RATE * min((step + 1) / warmup, (steps - step) / (steps - warmup))


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes the weights in bf16, atomically. The output matrix is tied and so not stored."""
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.rename(folder / "model.safetensors")


def sample(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str) -> str:
    """What the model writes after `prompt`."""
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=120,
        do_sample=True,
        temperature=GENERATION_CONFIG["temperature"],
        top_p=GENERATION_CONFIG["top_p"],
        pad_token_id=CONFIG["eos_token_id"],
    )
    return tokenizer.decode(out[0].tolist())


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="JSONL from stories_corpus.py")
    parser.add_argument("out", type=Path, help="the model folder to write")
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)

    texts = [json.loads(line)["text"] for line in args.corpus.open()]
    texts = [texts[i] for i in torch.randperm(len(texts), generator=rng)]
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts[len(texts) // HELD_OUT :])
    held_out = token_stream(tokenizer, texts[: len(texts) // HELD_OUT])
    stream = token_stream(tokenizer, texts[len(texts) // HELD_OUT :])
    print(f"{len(stream):,} tokens to train on, {len(held_out):,} held out", flush=True)
    tokenizer.save(str(args.out / "tokenizer.json"), pretty=False)
    write_json(args.out / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(args.out / "generation_config.json", GENERATION_CONFIG)
    write_json(args.out / "config.json", CONFIG)

    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    opts = optimizers(model)
    batches = windows(stream, SHORT_WINDOW, rng)
    lengthen_at = round(args.steps * (1 - LONG_SHARE))
    started = saved = time.monotonic()
    mean_loss = 0.0
    for step in range(args.steps):
        if step == lengthen_at:
            batches = windows(stream, LONG_WINDOW, rng)
        loss = loss_of(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = learning_rate(step, args.steps)
            opt.step()
            opt.zero_grad()
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 50)
        if (step + 1) % 50 == 0:
            rate = (step + 1) * BATCH_TOKENS / (time.monotonic() - started)
            print(f"step {step + 1:5}  loss {mean_loss:.3f}  {rate:,.0f} tokens/s", flush=True)
        if step + 1 == args.steps or time.monotonic() - saved > 60 * args.save_minutes:
            save_model(model, args.out)
            print(f"held-out loss {held_out_loss(model, held_out):.3f}", flush=True)
            print(sample(model, tokenizer, "Once upon a time"), flush=True)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
