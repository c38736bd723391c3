#!/usr/bin/env python3
"""Attention of PyTorch on the shapes that gpu_bench measures: one layer of Llama-3.1-8B, in a
decode step, and in a prefill of some queries, all of which see all rows.

    tests/bench/cuda/torch_attention.py [ROWS[,ROWS...] [BATCH[,BATCH...] [ROUNDS [QUERIES]]]]

All rows resident. Prints microseconds a layer, the median over rounds, with other memory written
in between."""
from torch_timing import median_us, name_machine, numbers, torch

KV_HEADS, HEADS, DIM = 8, 32, 128


def measure(rows, batch, queries, rounds, dtype):
    query = torch.randn(batch, HEADS, queries, DIM, device="cuda", dtype=dtype)
    keys, values = (torch.randn(batch, KV_HEADS, rows, DIM, device="cuda", dtype=dtype)
                    for _ in range(2))
    return median_us(rounds, lambda: torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, enable_gqa=True))


def main():
    rows_list, batches, (rounds,), (queries,) = numbers(
        [[8192, 32768, 122880], [1, 7], [15], [512]])
    name_machine()
    print("| rows | batch | us a layer |\n| --- | --- | --- |")
    for rows in rows_list:
        for batch in batches:
            taken_us = measure(rows, batch, 1, rounds, torch.bfloat16)
            print(f"| {rows} | {batch} | {taken_us:.1f} |", flush=True)
    print("\n| queries | rows | us | TFLOP/s |\n| --- | --- | --- | --- |")
    for rows in rows_list:
        taken_us = measure(rows, 1, queries, rounds, torch.float16)
        print(f"| {queries} | {rows} | {taken_us:.0f} | "
              f"{4e-6 * HEADS * DIM * queries * rows / taken_us:.1f} |", flush=True)


if __name__ == "__main__":
    main()
