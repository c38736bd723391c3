#!/usr/bin/env python3
"""PyTorch's products, which are cuBLAS's, in the shapes that gpu_bench measures: weights of bf16.

    tests/bench/cuda/torch_products.py [VECTORS[,VECTORS...] [WIDTH [ROUNDS]]]

Prints microseconds a product, the median over rounds, with other memory written in between."""
import statistics
import sys

try:
    import torch
except ImportError:
    sys.exit("torch_products: PyTorch is not installed here")


def measure(rows, cols, vectors, rounds):
    weights = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
    values = torch.randn(vectors, cols, device="cuda", dtype=torch.bfloat16)
    other = torch.empty(192 << 20, device="cuda", dtype=torch.uint8)
    times = []
    for _ in range(rounds + 1):
        other.fill_(1)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        torch.nn.functional.linear(values, weights)
        last.record()
        torch.cuda.synchronize()
        times.append(1000 * first.elapsed_time(last))
    return statistics.median(times[1:])


def main():
    lists = [[int(x) for x in text.split(",")] for text in sys.argv[1:]]
    defaults = [[1, 4, 16, 512], [4096], [15]]
    vectors_list, (width,), (rounds,) = lists + defaults[len(lists):]
    if not torch.cuda.is_available():
        sys.exit("torch_products: PyTorch sees no GPU")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    print("| weights | rows | us | TFLOP/s |\n| --- | --- | --- | --- |")
    for name, rows, cols in (("attention", width, width), ("up", width * 7 // 2, width),
                             ("down", width, width * 7 // 2)):
        for vectors in vectors_list:
            taken_us = measure(rows, cols, vectors, rounds)
            print(f"| {name} {rows} x {cols} | {vectors} | {taken_us:.1f} | "
                  f"{2e-6 * rows * cols * vectors / taken_us:.1f} |", flush=True)


if __name__ == "__main__":
    main()
