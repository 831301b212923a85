"""Writes tests/data/gradients/operators.json: derivatives of operators as torch.autograd has them.

    python gradients.py

A case is an operator of brolly, its attributes, operands, results and their cotangents, and the
gradients of the operands, all in float64. Operands that are not differentiated are integers or
booleans. Extremes have ties, products have zeros, indices repeat, so that what is done at kinks
is the same as in torch. A case is refused where torch.autograd.gradcheck refuses it, kinks apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fixtures import DATA, deterministic, rounded, write_json

DIGITS = 13


@dataclass
class Case:
    """One application of an operator and what torch computes instead."""

    op: str
    f: Callable[..., Tensor | tuple[Tensor, ...]]
    args: list[Tensor | None]
    attrs: dict = field(default_factory=dict)
    kink: bool = False


class Draw:
    """Random operands, the same each time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def positive(self, *shape: int) -> Tensor:
        return 0.2 + 3 * torch.rand(shape, generator=self.generator, dtype=torch.float64)


def ints(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def main() -> None:
    deterministic()
    draw = Draw()
    parts = (elementwise, movement, reductions, norms, windows, sequences, products)
    cases = [case for part in parts for case in part(draw)]
    records = [record(case, draw) for case in cases]
    release = torch.__version__.split("+")[0]
    write_json(DATA / "gradients" / "operators.json", {"torch": release, "cases": records})
    print(f"{len(records)} cases of {len({case.op for case in cases})} operators")


def record(case: Case, draw: Draw) -> dict:
    """Results and gradients of one case."""
    args = [leaf(arg) for arg in case.args]
    free = [arg for arg in args if arg is not None and arg.requires_grad]
    if not case.kink and not torch.autograd.gradcheck(lambda *_: case.f(*args), free):
        raise ValueError(f"{case.op}: gradcheck refuses it")
    results = case.f(*args)
    results = results if isinstance(results, tuple) else (results,)
    cotangents = [draw.normal(*r.shape) if r.is_floating_point() else None for r in results]
    smooth = [(r, c) for r, c in zip(results, cotangents) if c is not None and r.requires_grad]
    grads = iter(())
    if smooth:
        outputs, seeds = zip(*smooth)
        grads = iter(torch.autograd.grad(outputs, free, seeds, allow_unused=True))
    by_arg = [
        tensor(torch.zeros_like(arg) if (g := next(grads, None)) is None else g)
        if arg is not None and arg.requires_grad
        else None
        for arg in args
    ]
    return {
        "op": case.op,
        "attrs": case.attrs,
        "args": [tensor(arg) for arg in args],
        "results": [tensor(r) for r in results],
        "cotangents": [tensor(c) for c in cotangents],
        "grads": by_arg,
    }


def leaf(arg: Tensor | None) -> Tensor | None:
    if arg is None or not arg.is_floating_point():
        return arg
    return arg.detach().clone().requires_grad_()


def tensor(t: Tensor | None) -> dict | None:
    if t is None:
        return None
    dtype = {torch.float64: "f64", torch.int64: "i64", torch.int32: "i32", torch.bool: "bool"}
    values = t.detach().reshape(-1)
    values = values.int() if t.dtype == torch.bool else values
    return {
        "dtype": dtype[t.dtype],
        "shape": list(t.shape),
        "values": rounded(values.tolist(), DIGITS),
    }


def elementwise(draw: Draw) -> list[Case]:
    plain = {
        "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "exp": torch.exp,
        "tanh": torch.tanh, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
        "floor": torch.floor, "ceil": torch.ceil, "round": torch.round, "relu": F.relu,
        "sigmoid": torch.sigmoid, "silu": F.silu, "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "softplus": F.softplus,
    }
    positive = {
        "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "reciprocal": torch.reciprocal,
    }
    binary = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
        "maximum": torch.maximum, "minimum": torch.minimum, "rem": torch.fmod,
    }
    cases = [Case(op, f, [draw.normal(2, 5)]) for op, f in plain.items()]
    cases += [Case(op, f, [draw.positive(2, 5)]) for op, f in positive.items()]
    for op, f in binary.items():
        cases.append(Case(op, f, [draw.normal(2, 1, 3), draw.normal(4, 1)]))
        cases.append(Case(op, f, [draw.normal(3), draw.normal()]))
    tied = torch.tensor([1.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    other = torch.tensor([1.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    for op in ("maximum", "minimum"):
        cases.append(Case(op, binary[op], [tied, other], kink=True))
    cases.append(Case("abs", torch.abs, [tied], kink=True))
    cases.append(Case("relu", F.relu, [tied], kink=True))
    cases.append(Case("pow", torch.pow, [draw.positive(2, 3), draw.normal(3)]))
    zeros = torch.tensor([0.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    powers = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    cases.append(Case("pow", torch.pow, [zeros, powers], kink=True))
    cond = torch.tensor([[True], [False]])
    cases.append(Case("select", torch.where, [cond, draw.normal(2, 3), draw.normal(3)]))
    return cases


def movement(draw: Draw) -> list[Case]:
    rows = ints(3, 0, -1, 3).reshape(2, 2)
    elements = ints(3, 0, -1, 2, 2, 1).reshape(2, 3)
    tuples = ints(0, 2, 1, -1, 1, 0, 0, 2).reshape(4, 2)
    places = ints(2, 0).reshape(2, 1)
    return [
        Case("reshape", lambda x: x.reshape(3, 4), [draw.normal(2, 6)], {"shape": [3, 4]}),
        Case(
            "transpose", lambda x: x.permute(2, 0, 1), [draw.normal(2, 3, 2)], {"perm": [2, 0, 1]},
        ),
        Case(
            "broadcast_to", lambda x: x.expand(2, 3, 4), [draw.normal(3, 1)], {"shape": [2, 3, 4]}
        ),
        Case(
            "slice", lambda x: x[:, 1:8:3], [draw.normal(2, 9)],
            {"axis": 1, "range": [1, 8], "step": 3},
        ),
        Case(
            "slice", lambda x: x.flip(1)[:, ::2], [draw.normal(2, 6)],
            {"axis": -1, "range": [5, -1], "step": -2},
        ),
        Case(
            "concat", lambda *xs: torch.cat(xs, 1),
            [draw.normal(2, 3), draw.normal(2, 1), draw.normal(2, 2)], {"axis": 1},
        ),
        Case("gather", lambda x, i: x[i % 4], [draw.normal(4, 3), rows], {"axis": 0}),
        Case("gather", lambda x, i: x[:, i % 4], [draw.normal(2, 4, 3), rows], {"axis": 1}),
        Case(
            "gather_elements", lambda x, i: x.gather(0, i % 4), [draw.normal(4, 4), elements],
            {"axis": 0},
        ),
        Case("gather_nd", lambda x, i: x[i[:, 0], i[:, 1]], [draw.normal(2, 3, 2), tuples]),
        Case(
            "gather_nd", lambda x, i: torch.stack([x[0, 2], x[1, 0]]).reshape(2, 1, 2),
            [draw.normal(2, 3, 2), ints(2, 0).reshape(2, 1, 1)], {"batch_dims": 1},
        ),
        Case(
            "scatter_nd", lambda x, i, u: x.index_put((i[:, 0],), u),
            [draw.normal(4, 3), places, draw.normal(2, 3)],
        ),
        Case(
            "cumsum", lambda x: x.cumsum(1), [draw.normal(2, 5)], {"axis": 1},
        ),
        Case(
            "topk", lambda x: tuple(x.topk(3, 1)), [draw.normal(2, 6)], {"k": [3], "axis": 1},
        ),
        Case(
            "topk", lambda x: tuple(x.topk(2, 0, largest=False)), [draw.normal(5, 2)],
            {"k": [2], "axis": 0, "largest": False},
        ),
        Case(
            "sort", lambda x: tuple(x.sort(stable=True, dim=1, descending=True)),
            [draw.normal(2, 5)],
            {"axis": 1, "descending": True},
        ),
        Case(
            "embedding_grad",
            lambda x, i: torch.zeros(4, 3, dtype=torch.float64).index_add(0, i, x),
            [draw.normal(5, 3), ints(1, 3, 1, 0, 1)], {"rows": [4]},
        ),
    ]


def reductions(draw: Draw) -> list[Case]:
    tied = torch.tensor([[1.0, 3.0, 3.0], [2.0, -1.0, 2.0]], dtype=torch.float64)
    zeros = torch.tensor([[1.0, 0.0, 3.0], [0.0, -1.0, 0.0], [2.0, 5.0, 4.0]], dtype=torch.float64)
    functions = {
        "reduce_sum": torch.sum, "reduce_mean": torch.mean,
        "reduce_max": torch.amax, "reduce_min": torch.amin,
    }
    cases = []
    for op, f in functions.items():
        for axes, keep in (([0, 2], False), ([1], True)):
            apply = lambda x, f=f, axes=axes, keep=keep: f(x, axes, keepdim=keep)
            cases.append(Case(op, apply, [draw.normal(2, 3, 4)], {"axes": axes, "keep": keep}))
    for op in ("reduce_max", "reduce_min"):
        cases.append(Case(op, lambda x, f=functions[op]: f(x, 1), [tied], {"axes": [1]}, kink=True))
    product = lambda x: x.prod(1)
    cases.append(Case("reduce_prod", product, [draw.normal(2, 4)], {"axes": [1]}))
    cases.append(Case("reduce_prod", product, [zeros], {"axes": [1]}))
    cases.append(Case("softmax", lambda x: x.softmax(0), [draw.normal(4, 3)], {"axis": 0}))
    cases.append(Case("logsumexp", lambda x: x.logsumexp(-1), [draw.normal(2, 5)]))
    return cases


def norms(draw: Draw) -> list[Case]:
    eps = {"eps": 1e-5}
    x, w, b = draw.normal(2, 3, 5), draw.normal(5), draw.normal(5)
    rows = draw.normal(3, 4)
    rows[1] = 0
    return [
        Case("rms_norm", lambda x, w: F.rms_norm(x, (5,), w, 1e-5), [x, w], eps),
        Case("layer_norm", lambda x, w, b: F.layer_norm(x, (5,), w, b, 1e-5), [x, w, b], eps),
        Case("layer_norm", lambda x, w: F.layer_norm(x, (5,), w, None, 1e-5), [x, w], eps),
        Case(
            "group_norm", lambda x, w, b: F.group_norm(x, 2, w, b, 1e-5),
            [draw.normal(2, 4, 3), draw.normal(4), draw.normal(4)], {"groups": 2, **eps},
        ),
        Case("l2_normalize", lambda x: F.normalize(x, dim=-1), [draw.normal(2, 4)]),
        Case("l2_normalize", lambda x: F.normalize(x, dim=-1), [rows], kink=True),
    ]


def windows(draw: Draw) -> list[Case]:
    two = {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [1, 2]}
    return [
        Case(
            "conv", lambda x, w, b: F.conv1d(x, w, b, 3),
            [draw.normal(2, 2, 9), draw.normal(3, 2, 2), draw.normal(3)], {"strides": [3]},
        ),
        Case(
            "conv", lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), 2),
            [draw.normal(1, 4, 5, 4), draw.normal(2, 2, 3, 2)], {**two, "group": 2},
        ),
        Case(
            "conv", lambda x, w: F.conv3d(x, w, None, (1, 2, 1)),
            [draw.normal(1, 1, 3, 4, 3), draw.normal(2, 1, 2, 2, 2)], {"strides": [1, 2, 1]},
        ),
        Case(
            "conv_transpose", lambda x, w, b: F.conv_transpose1d(x, w, b, 3, 1, 2),
            [draw.normal(2, 2, 3), draw.normal(2, 3, 2), draw.normal(3)],
            {"strides": [3], "pads": [1, 1], "output_padding": [2]},
        ),
        Case(
            "conv_transpose",
            lambda x, w: F.conv_transpose2d(x, w, None, (2, 1), (1, 0), (0, 0), 2, (1, 2)),
            [draw.normal(1, 4, 3, 2), draw.normal(4, 1, 2, 2)],
            {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2], "group": 2},
        ),
        Case(
            "max_pool", lambda x: F.max_pool2d(x, (2, 3), (2, 1), (1, 1), ceil_mode=True),
            [draw.normal(1, 2, 5, 4)],
            {"kernel": [2, 3], "strides": [2, 1], "pads": [1, 1, 1, 1], "ceil": True},
        ),
        Case(
            "average_pool",
            lambda x: F.avg_pool2d(x, (3, 2), (2, 2), (1, 1), True, False),
            [draw.normal(1, 2, 6, 5)],
            {"kernel": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil": True},
        ),
        Case(
            "average_pool",
            lambda x: F.avg_pool2d(x, (3, 2), (2, 2), (1, 1), True, True),
            [draw.normal(1, 2, 6, 5)],
            {
                "kernel": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil": True,
                "include_pad": True,
            },
        ),
    ]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half = cos.shape[1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    pair = (a * c - b * s, b * c + a * s)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((turned, rest), -1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float, cap: float, bias=None
) -> Tensor:
    """`[B, Hq, M, D]`, `[B, Hkv, N, D]`, `[B, Hkv, N, Dv]`, keys hidden from queries `[M, N]`."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    s = q @ k.transpose(-1, -2) * scale
    s = cap * torch.tanh(s / cap) if cap else s
    s = s if bias is None else s + bias
    return s.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def packed(q, k, v, cu, attrs: dict) -> Tensor:
    t = torch.arange(q.shape[0])
    segment = torch.bucketize(t, cu, right=True)
    distance = t[:, None] - t[None]
    hidden = segment[:, None] != segment[None]
    if attrs["mask"] == "causal":
        hidden |= distance < 0
    if attrs.get("window"):
        hidden |= distance >= attrs["window"]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    y = attend(q, k, v, hidden, attrs["scale"], attrs.get("softcap", 0.0))
    return y[0].transpose(0, 1)


def sequences(draw: Draw) -> list[Case]:
    cases = []
    cos, sin = draw.normal(3, 2), draw.normal(3, 2)
    for style, width in (("half", 4), ("interleaved", 4), ("half", 5), ("interleaved", 5)):
        apply = lambda x, c, s, style=style: rotate(x, c, s, style == "interleaved")
        cases.append(Case("rope", apply, [draw.normal(3, 2, width), cos, sin], {"style": style}))
    cu = ints(0, 2, 5, dtype=torch.int32)
    for mask, window, cap in (("full", 0, 0.0), ("causal", 0, 1.5), ("causal", 2, 0.0)):
        attrs = {"scale": 0.4, "mask": mask, "window": window, "softcap": cap}
        args = [draw.normal(5, 4, 3), draw.normal(5, 2, 3), draw.normal(5, 2, 2), cu]
        apply = lambda q, k, v, cu, attrs=attrs: packed(q, k, v, cu, attrs)
        cases.append(Case("attention", apply, args, attrs))
    shapes = ((2, 4, 3, 2), (2, 2, 4, 2), (2, 2, 4, 3), (2, 1, 1, 4))
    later = torch.ones(3, 4, dtype=torch.bool).triu(2)
    none = torch.zeros(3, 4, dtype=torch.bool)
    for mask, hidden, cap in (("causal", later, 2.0), ("full", none, 0.0)):
        apply = lambda q, k, v, _, bias, h=hidden, c=cap: attend(q, k, v, h, 0.6, c, bias)
        q, k, v, bias = (draw.normal(*shape) for shape in shapes)
        attrs = {"scale": 0.6, "mask": mask, "softcap": cap}
        cases.append(Case("attention", apply, [q, k, v, None, bias], attrs))
    score = lambda q, k, b: 2 * torch.tanh(q @ k.transpose(-1, -2) * 0.5 / 2) + b
    args = [draw.normal(2, 3, 4), draw.normal(2, 5, 4), draw.normal(1, 5)]
    cases.append(Case("score", score, args, {"scale": 0.5, "softcap": 2.0}))
    bounds = ints(0, 2, 2, 5, dtype=torch.int32)
    parts = ((0, 2), (2, 2), (2, 5))
    mean = lambda x, _: torch.stack([x[a:b].sum(0) / max(b - a, 1) for a, b in parts])
    first = lambda x, _: torch.stack([x[a] if a < b else 0 * x[0] for a, b in parts])
    cases.append(Case("segment_mean", mean, [draw.normal(5, 3), bounds]))
    cases.append(Case("segment_first", first, [draw.normal(5, 3), bounds]))
    return cases


def route(logits: Tensor, before: bool, renormalise: bool) -> tuple[Tensor, Tensor]:
    weights, experts = (logits.softmax(-1) if before else logits).topk(2, -1)
    weights = weights if before else weights.softmax(-1)
    weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
    return weights, experts.int()


def unpacked(w: Tensor, n: int) -> Tensor:
    """`[.., P, K, 16]` as `[.., K, n]`."""
    return w.transpose(-3, -2).flatten(-2)[..., :n]


def combine(y: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    inside = (slots >= 0) & (slots < y.shape[0])
    rows = y[slots.clamp(0, y.shape[0] - 1).long()]
    return (rows * (weights * inside)[..., None]).sum(1)


def products(draw: Draw) -> list[Case]:
    cases = [
        Case("matmul", torch.matmul, [draw.normal(2, 1, 3, 4), draw.normal(2, 4, 2)]),
        Case("matmul", torch.matmul, [draw.normal(2, 3, 4), draw.normal(4, 2)]),
    ]
    for before, renormalise in ((True, True), (True, False), (False, False)):
        apply = lambda x, b=before, r=renormalise: route(x, b, r)
        attrs = {"k": 2, "softmax": "before" if before else "after", "renormalise": renormalise}
        cases.append(Case("moe_route", apply, [draw.normal(3, 5)], attrs))
    slots = ints(3, 0, 9, -1, 1, 2, dtype=torch.int32).reshape(3, 2)
    cases.append(Case("moe_combine", combine, [draw.normal(4, 3), slots, draw.normal(3, 2)]))
    for act, f in (("none", lambda x: x), ("silu", F.silu), ("gelu", F.gelu)):
        apply = lambda x, w, b, r, f=f: f(x @ unpacked(w, 5) + b) + r
        args = [draw.normal(2, 3), draw.normal(1, 3, 16), draw.normal(5), draw.normal(2, 5)]
        cases.append(Case("linear", apply, args, {"n": 5, "act": act}))
    halves = lambda w: (w[..., 0::2, :, :], w[..., 1::2, :, :])
    gated = lambda x, w: F.silu(x @ unpacked(halves(w)[0], 5)) * (x @ unpacked(halves(w)[1], 5))
    args = [draw.normal(2, 3), draw.normal(2, 3, 16)]
    cases.append(Case("gated_linear", gated, args, {"n": 5, "act": "silu"}))
    offsets = ints(0, 2, 3, dtype=torch.int32)

    def grouped(x, w, _, b):
        parts = [x[:2] @ unpacked(w[0], 5) + b[0], x[2:3] @ unpacked(w[1], 5) + b[1]]
        return torch.cat([torch.sigmoid(part) for part in parts] + [0 * x[3:] @ x.new_zeros(3, 5)])

    args = [draw.normal(4, 3), draw.normal(2, 1, 3, 16), offsets, draw.normal(2, 5)]
    cases.append(Case("grouped_linear", grouped, args, {"n": 5, "act": "sigmoid"}))

    def grouped_gated(x, w, _):
        gate, up = halves(w)
        each = lambda x, e: F.silu(x @ unpacked(gate[e], 5)) * (x @ unpacked(up[e], 5))
        return torch.cat([each(x[:2], 0), each(x[2:3], 1), 0 * x[3:] @ x.new_zeros(3, 5)])

    args = [draw.normal(4, 3), draw.normal(2, 2, 3, 16), offsets]
    cases.append(Case("grouped_gated_linear", grouped_gated, args, {"n": 5, "act": "silu"}))
    pack = lambda w: F.pad(w, (0, 14)).reshape(3, 2, 16).transpose(0, 1)
    cases.append(Case("pack", pack, [draw.normal(3, 18)]))
    interleave = lambda a, b: torch.stack((a, b), 1).flatten(0, 1)
    cases.append(Case("interleave", interleave, [draw.normal(2, 1, 16), draw.normal(2, 1, 16)]))
    targets = ints(2, -100, 0, dtype=torch.int32)

    def head(x, w, targets):
        logits = x @ w.T
        loss = F.cross_entropy(logits, targets.long(), reduction="none", ignore_index=-100)
        return loss, logits.logsumexp(-1)

    args = [draw.normal(3, 4), draw.normal(5, 4), targets]
    cases.append(Case("linear_cross_entropy", head, args))
    return cases


if __name__ == "__main__":
    main()
