"""Writes tests/data/training/optimizers.json: what PyTorch's optimisers and schedules make of given
gradients.

    python optimizers.py

Two matrices and two vectors follow gradients that are functions of step, tensor and element
(`numbers`), so that the file holds parameters alone, after a few of 1,000 steps in f32. The global
norm is clipped, the learning rate follows a cosine after warmup, and matrices alone decay, apart
from their gradients, whatever PyTorch's own rule does with decay.

    cases[name]   parameters after each of STEPS, each a list of its elements
    schedules     arguments, and the learning rate of each step by torch's LambdaLR
    scaler        runs of steps alike: how many, whether gradients are finite, and then the scale and
                  the tracker of torch's GradScaler
"""

import math

import numpy
import torch

from fixtures import DATA, deterministic, write_json

SHAPES = [(4, 6), (8, 3), (5,), (3,)]
STEPS = [1, 10, 100, 1000]
LR, MIN_LR, WARMUP, CLIP_NORM, WEIGHT_DECAY = 3e-3, 3e-4, 100, 1.0, 0.1


def main() -> None:
    deterministic()
    cases = {name: trained(make) for name, make in OPTIMIZERS.items()}
    schedules = [
        scheduled("constant", warmup_steps=3),
        scheduled("linear", min_lr=1e-4, warmup_steps=4),
        scheduled("cosine", min_lr=1e-4, warmup_steps=4),
        scheduled("cosine", min_lr=0.0, warmup_steps=0),
        scheduled("wsd", min_lr=1e-4, warmup_steps=4, decay_steps=10),
    ]
    record = {"cases": cases, "schedules": schedules, "scaler": scaled()}
    write_json(DATA / "training" / "optimizers.json", record)
    for name, record in cases.items():
        print(name, record[-1][0][:3])


def numbers(step: int, tensor: int, count: int) -> torch.Tensor:
    """Numbers in -1..1 with 24 bits: a counter, mixed as in SplitMix64 (Steele et al. 2014)."""
    counter = numpy.arange(count, dtype=numpy.uint64)
    counter += numpy.uint64(step << 16 | tensor << 8) + numpy.uint64(1)
    with numpy.errstate(over="ignore"):
        x = counter * numpy.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        x = x ^ (x >> numpy.uint64(31))
    values = (x >> numpy.uint64(40)).astype(numpy.float64) / 2.0**23 - 1.0
    return torch.from_numpy(values.astype(numpy.float32))


def filled(step: int) -> list[torch.Tensor]:
    shapes = enumerate(SHAPES)
    return [numbers(step, i, math.prod(shape)).reshape(shape) for i, shape in shapes]


def shape_of(name: str, lr: float, steps: int, **given) -> "callable":
    """The learning rate of step k over `lr`, as a function of k from 1 on."""
    warmup, low = given.get("warmup_steps", 0), given.get("min_lr", 0.0) / lr

    def at(k: int) -> float:
        if k <= warmup:
            return k / warmup
        t = (k - warmup) / (steps - warmup)
        if name == "linear":
            return 1 + (low - 1) * t
        if name == "cosine":
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * t))
        if name == "wsd":
            decay = given["decay_steps"]
            return 1 + (low - 1) * max(0, k - (steps - decay)) / decay
        return 1.0

    return at


def scheduled(name: str, steps: int = 40, lr: float = 2e-3, **given) -> dict:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    at = shape_of(name, lr, steps, **given)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: at(done + 1))
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return {"schedule": name, "steps": steps, "lr": lr, **given, "rates": rates}


def scaled() -> list[list]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    record = []
    for count, finite in [(3, False), (1999, True), (1, True), (1, False), (5, True), (1, False),
                          (2001, True)]:
        for _ in range(count):
            factor = 1.0 if finite else float("inf")
            optimizer.zero_grad()
            scaler.scale((parameter * factor + parameter).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        record.append([count, finite, scaler.get_scale(), scaler._get_growth_tracker()])
    return record


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, algorithm 2."""

    def __init__(self, groups, lr, betas, weight_decay=0.0):
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                direction = m.mul(beta1).add_(p.grad, alpha=1 - beta1).sign_()
                p.add_(direction, alpha=-group["lr"])
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class DecoupledSGD(torch.optim.SGD):
    """PyTorch's, with decay apart from the gradient."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["decay"])
        super().step()


def orthogonal(grad, ns_coefficients, ns_steps, eps):
    """PyTorch's iteration of Newton and Schulz, in the gradient's type instead of bf16."""
    a, b, c = ns_coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


torch.optim._muon._zeropower_via_newtonschulz = orthogonal


def decaying(parameters: list, key: str = "weight_decay") -> list[dict]:
    """Matrices decay and vectors do not."""
    of_rank = lambda wanted: [p for p in parameters if (p.dim() >= 2) == wanted]
    return [{"params": of_rank(True), key: WEIGHT_DECAY}, {"params": of_rank(False), key: 0.0}]


def muon(parameters: list) -> list[torch.optim.Optimizer]:
    matrices, vectors = (group["params"] for group in decaying(parameters))
    return [
        torch.optim.Muon(matrices, lr=LR, momentum=0.95, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(vectors, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
    ]


OPTIMIZERS = {
    "adamw": lambda ps: [torch.optim.AdamW(decaying(ps), lr=LR, betas=(0.9, 0.95), eps=1e-8)],
    "lion": lambda ps: [Lion(decaying(ps), lr=LR, betas=(0.9, 0.99))],
    "sgd": lambda ps: [DecoupledSGD(decaying(ps, "decay"), lr=LR, momentum=0.9, nesterov=True)],
    "sgd_plain": lambda ps: [DecoupledSGD(decaying(ps, "decay"), lr=LR)],
    "adafactor": lambda ps: [torch.optim.Adafactor(decaying(ps), lr=LR)],
    "muon": muon,
}


def trained(make: "callable") -> list[list[list[float]]]:
    parameters = [torch.nn.Parameter(x) for x in filled(0)]
    optimizers = make(parameters)
    at = shape_of("cosine", LR, STEPS[-1], min_lr=MIN_LR, warmup_steps=WARMUP)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: at(done + 1))
        for optimizer in optimizers
    ]
    record = []
    for step in range(1, STEPS[-1] + 1):
        for p, grad in zip(parameters, filled(step)):
            p.grad = grad
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
        if step in STEPS:
            # Nine digits tell any two f32 apart.
            digits = lambda p: [float(f"{x:.9g}") for x in p.detach().flatten().tolist()]
            record.append([digits(p) for p in parameters])
    return record


if __name__ == "__main__":
    main()
