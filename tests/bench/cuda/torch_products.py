#!/usr/bin/env python3
"""PyTorch's products, which are cuBLAS's, in the shapes that gpu_bench measures: weights of bf16.

    tests/bench/cuda/torch_products.py [VECTORS[,VECTORS...] [WIDTH [ROUNDS]]]

Prints microseconds a product, the median over rounds, with other memory written in between."""
from torch_timing import median_us, name_machine, numbers, torch


def measure(rows, cols, vectors, rounds):
    weights = torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16)
    values = torch.randn(vectors, cols, device="cuda", dtype=torch.bfloat16)
    return median_us(rounds, lambda: torch.nn.functional.linear(values, weights))


def main():
    vectors_list, (width,), (rounds,) = numbers([[1, 4, 16, 512], [4096], [15]])
    name_machine()
    print("| weights | rows | us | TFLOP/s |\n| --- | --- | --- | --- |")
    for name, rows, cols in (("attention", width, width), ("up", width * 7 // 2, width),
                             ("down", width, width * 7 // 2)):
        for vectors in vectors_list:
            taken_us = measure(rows, cols, vectors, rounds)
            print(f"| {name} {rows} x {cols} | {vectors} | {taken_us:.1f} | "
                  f"{2e-6 * rows * cols * vectors / taken_us:.1f} |", flush=True)


if __name__ == "__main__":
    main()
