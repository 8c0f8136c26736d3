#!/usr/bin/env python3
"""What PyTorch reaches on this machine, as one line of JSON: a copy on the device, BF16 matmuls of a prefill of 2,048 tokens, all
BF16 matrices of a decode step replayed as one CUDA graph, and decoding with transformers where that is installed.

--tiny runs the same code with small shapes, on the CPU if there is no GPU: a check of the script."""
import json
import sys
import time

import torch

TINY = "--tiny" in sys.argv
CUDA = torch.cuda.is_available()
if not CUDA and not TINY:
    sys.exit("torch sees no GPU")
DEVICE = "cuda" if CUDA else "cpu"
BF16 = torch.bfloat16

# layers, width, feed-forward, heads, key heads, vocabulary
SHAPES = {
    "llama-3.2-1b": (16, 2048, 8192, 32, 8, 128256),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128256),
}
if TINY:
    SHAPES = {"tiny": (2, 64, 128, 4, 2, 1000)}


def wait():
    if CUDA:
        torch.cuda.synchronize()


def seconds(work, repeats):
    """Seconds of one call, the best of three rounds."""
    work()
    best = float("inf")
    for _ in range(3):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def copy():
    n = (1 << 16) if TINY else (1 << 28)
    a = torch.ones(n, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    return 2 * n / seconds(lambda: b.copy_(a), 8) / 1e9


def matmul(shape):
    """TFLOP/s of the products of one layer at 2,048 rows."""
    _, d, f, _, _, _ = SHAPES[shape]
    rows = 16 if TINY else 2048
    x = torch.randn(rows, d, dtype=BF16, device=DEVICE)
    up = torch.randn(f, d, dtype=BF16, device=DEVICE)
    return 2 * rows * d * f / seconds(lambda: torch.nn.functional.linear(x, up), 10) / 1e12


def products(shape):
    """Tokens per second and GB/s if a decode step were its matrices alone, in one CUDA graph."""
    layers, d, f, heads, kv, vocabulary = SHAPES[shape]
    narrow = d * kv // heads
    sizes = [(d, d), (narrow, d), (narrow, d), (d, d), (f, d), (f, d), (d, f)] * layers + [(vocabulary, d)]
    weights = [torch.empty(n, k, dtype=BF16, device=DEVICE).normal_(0, 0.02) for n, k in sizes]
    inputs = {k: torch.randn(1, k, dtype=BF16, device=DEVICE) for _, k in sizes}

    def step():
        for w in weights:
            torch.nn.functional.linear(inputs[w.shape[1]], w)

    run = step
    if CUDA:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    time_of_one = seconds(run, 2 if TINY else 20)
    return {"tps": 1 / time_of_one, "gbps": sum(2 * n * k for n, k in sizes) / time_of_one / 1e9}


def decode(shape):
    """Greedy decoding with transformers, eager, random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, d, f, heads, kv, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=d, intermediate_size=f, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, max_position_embeddings=4096)
    default = torch.get_default_dtype()
    torch.set_default_dtype(BF16)
    try:
        with torch.device(DEVICE):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    prompt, new = (4, 3) if TINY else (2048, 32)
    ids = torch.randint(0, vocabulary, (1, prompt), device=DEVICE)
    with torch.inference_mode():
        model(ids)
        wait()
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        token.item()
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(new):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            token.item()
        took = time.perf_counter() - start
    return {"prefill_tps": prompt / prefill, "decode_tps": new / took}


def main():
    report = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if CUDA else "cpu", "errors": {}}

    def measure(name, work):
        try:
            report[name] = work()
        except Exception as e:  # A part that fails leaves the others.
            report["errors"][name] = f"{type(e).__name__}: {e}"
        if CUDA:
            torch.cuda.empty_cache()

    measure("copy_gbps", copy)
    for shape in SHAPES:
        measure(f"matmul_tflops {shape}", lambda: matmul(shape))
        measure(f"products {shape}", lambda: products(shape))
        measure(f"transformers {shape}", lambda: decode(shape))
    print(json.dumps(report))


main()
