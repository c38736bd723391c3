#!/usr/bin/env python3
"""Decode attention of PyTorch on the shape that gpu_bench measures: one layer of Llama-3.1-8B.

    tests/bench/cuda/torch_attention.py [ROWS[,ROWS...] [BATCH[,BATCH...] [ROUNDS]]]

All rows resident. Prints microseconds a layer, the median over rounds, with other memory written
in between."""
import statistics
import sys

try:
    import torch
    from torch.nn.functional import scaled_dot_product_attention
except ImportError:
    sys.exit("torch_attention: PyTorch is not installed here")

KV_HEADS, HEADS, DIM = 8, 32, 128


def measure(rows, batch, rounds):
    query = torch.randn(batch, HEADS, 1, DIM, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(batch, KV_HEADS, rows, DIM, device="cuda", dtype=torch.bfloat16)
                    for _ in range(2))
    other = torch.empty(192 << 20, device="cuda", dtype=torch.uint8)
    times = []
    for _ in range(rounds + 1):
        other.fill_(1)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        last.record()
        torch.cuda.synchronize()
        times.append(1000 * first.elapsed_time(last))
    return statistics.median(times[1:])


def main():
    lists = [[int(x) for x in text.split(",")] for text in sys.argv[1:]]
    defaults = [[8192, 32768, 122880], [1, 7], [15]]
    rows_list, batches, rounds = lists + defaults[len(lists):]
    if not torch.cuda.is_available():
        sys.exit("torch_attention: PyTorch sees no GPU")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}\n")
    print("| rows | batch | us a layer |\n| --- | --- | --- |")
    for rows in rows_list:
        for batch in batches:
            print(f"| {rows} | {batch} | {measure(rows, batch, rounds[0]):.1f} |", flush=True)


if __name__ == "__main__":
    main()
