#!/usr/bin/env python3
"""Decode attention of PyTorch on the shape that gpu_bench measures: one layer of Llama-3.1-8B.

    tests/bench/cuda/torch_attention.py [ROWS[,ROWS...] [BATCH[,BATCH...] [ROUNDS]]]

All rows resident. Prints microseconds a layer, the median over rounds, with other memory written
in between."""
from torch_timing import median_us, name_machine, numbers, torch

KV_HEADS, HEADS, DIM = 8, 32, 128


def measure(rows, batch, rounds):
    query = torch.randn(batch, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(batch, KV_HEADS, rows, DIM, device="cuda", dtype=torch.bfloat16)
                    for _ in range(2))
    return median_us(rounds, lambda: torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, enable_gqa=True))


def main():
    rows_list, batches, (rounds,) = numbers([[8192, 32768, 122880], [1, 7], [15]])
    name_machine()
    print("| rows | batch | us a layer |\n| --- | --- | --- |")
    for rows in rows_list:
        for batch in batches:
            print(f"| {rows} | {batch} | {measure(rows, batch, rounds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
