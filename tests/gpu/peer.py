"""Times PyTorch on the computations that gpu-check times: microseconds by the same names, as JSON.

cuBLAS through matmul and F.linear, the fastest of the backends of scaled_dot_product_attention, and
copies. As in gpu-check, the median of replays of a graph of many launches, which go round copies of
their operands where those would stay in the second-level cache.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LIMIT_S = 60
ROUND_BYTES = 256 << 20
GRAPH_MS = 20
REPLAYS = 7
DEVICE = "cuda"
started = time.monotonic()
times = {}


def median_ms(work):
    for _ in range(2):
        work()
    found = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return sorted(found)[REPLAYS // 2]


def time_us(run, operands):
    """Microseconds of `run(*operands)`."""
    size = sum(x.numel() * x.element_size() for x in operands)
    copies = min(64, max(1, -(-ROUND_BYTES // size)))
    rounds = [operands] + [[x.clone() for x in operands] for _ in range(copies - 1)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*operands)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(3):
            run(*operands)
        end.record()
        end.synchronize()
        once = begin.elapsed_time(end) / 3
    count = min(400, max(1, round(GRAPH_MS / max(once, 1e-3))))
    count = -(-count // copies) * copies
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            run(*rounds[i % copies])
    return median_ms(graph.replay) * 1e3 / count


def add(name, run, *operands):
    if time.monotonic() - started > LIMIT_S:
        print(f"peer: out of time before {name}", file=sys.stderr)
        return
    try:
        with torch.inference_mode():
            us = time_us(run, list(operands))
        times[name] = min(us, times.get(name, us))
    except Exception as error:  # noqa: BLE001: a peer that lacks something is not our failure
        print(f"peer: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    torch.cuda.empty_cache()


def noise(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device=DEVICE, dtype=torch.float32).mul_(0.29).to(dtype)


def products():
    shapes = [(4096, 4096, 4096), (8192, 8192, 8192)]
    shapes += [(m, 14336, 4096) for m in (1, 8, 64, 512, 4096)]
    shapes += [(m, 4096, 4096) for m in (1, 8, 64, 512)]
    for m, n, k in shapes:
        x, w = noise(m, k), noise(n, k)
        name = f"linear bf16 {m}x{n}x{k}"
        add(name, lambda x, w: F.linear(x, w), x, w)
        if m >= 4096:
            add(name, lambda x, w: torch.matmul(x, w), x, noise(k, n))
        if n == 14336:
            # f32 activations as a model in bf16 has them at its borders: cast, then multiplied.
            add(
                f"linear f32 {m}x{n}x{k}",
                lambda x, w: F.linear(x.to(torch.bfloat16), w).to(torch.float32),
                noise(m, k, dtype=torch.float32),
                w,
            )
    # With f32 weights: PyTorch multiplies those as f32 unless it is told to take tf32.
    for m in (1, 4, 16, 256, 4096):
        x, w = noise(m, 4096, dtype=torch.float32), noise(4096, 4096, dtype=torch.float32)
        add(f"linear f32 by f32 {m}x4096x4096", lambda x, w: F.linear(x, w), x, w)


def attention():
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for tokens in (4096, 8192, 16384):
        q, k, v = noise(1, 32, tokens, 128), noise(1, 8, tokens, 128), noise(1, 8, tokens, 128)
        for backend in backends:

            def run(q, k, v, backend=backend):
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(
                        q, k, v, is_causal=True, scale=2.0, enable_gqa=True
                    )

            add(f"attention causal {tokens}", run, q, k, v)
    for sequences in (1, 8, 64):
        q = noise(sequences, 32, 1, 128)
        k, v = noise(sequences, 8, 4096, 128), noise(sequences, 8, 4096, 128)
        for backend in backends:

            def run(q, k, v, backend=backend):
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, scale=2.0, enable_gqa=True)

            add(f"attention decode {sequences}x4096", run, q, k, v)


def rows():
    x, w = noise(8192, 4096), noise(4096)
    add("rms_norm bf16 8192x4096", lambda x, w: F.rms_norm(x, (4096,), w, 1e-5), x, w)
    x = noise(8192, 4096, dtype=torch.float32)
    add("softmax f32 8192x4096", lambda x: torch.softmax(x, -1), x)
    x, y = noise(16384, 4096), noise(16384, 4096)
    add("silu bf16 16384x4096", F.silu, x)
    add("add bf16 16384x4096", torch.add, x, y)


def main():
    torch.manual_seed(0)
    print(
        f"peer: torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name(0)}"
    )
    products()
    attention()
    rows()
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    ms = median_ms(lambda: [target.copy_(source) for _ in range(4)])
    print(f"peer: copies on the device: {8 * (1 << 30) / ms / 1e6:.0f} GB/s")
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        json.dump(times, out, indent=1)
    print(f"peer: {len(times)} times in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
