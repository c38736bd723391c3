#!/usr/bin/env python3
"""Writes quantize.json: rows of f16, and the blocks that llama.cpp makes of them.

    python3 tests/golden/make_quantize.py tests/golden/quantize.json [LIBRARY.so]

By gguf-py, which says that its bits are llama.cpp's; and IQ4_NL, which it does not write, by
quantize_row_iq4_nl_ref of a library that has it (recorded with xllamacpp 2026.10.11549's). Needs
the packages gguf and numpy. Rows are random, of many sizes, with outliers, flat ones, zeros and
ties. In hex.
"""
import ctypes
import importlib.metadata
import json
import sys

import gguf
import numpy as np

TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def rows_of(rng):
    rows = []
    for power in range(-24, 14, 2):
        row = rng.standard_normal(32) * 2.0**power
        if power % 4 == 0:
            row[rng.integers(32)] *= 20
        rows.append(row)
    rows += [np.zeros(32), np.full(32, 0.75), np.full(32, -3.0), np.arange(32) - 16,
             np.arange(32) % 8 * 0.5, rng.integers(-8, 9, 32) * 1.0, rng.random(32) + 5]
    return np.clip(np.array(rows), -65504, 65504).astype(np.float16)


def iq4_nl(library, rows):
    base = ctypes.CDLL(library)
    out = np.zeros((len(rows), 18), np.uint8)
    floats = rows.astype(np.float32)
    for row, block in zip(floats, out):
        base.quantize_row_iq4_nl_ref(row.ctypes.data_as(ctypes.c_void_p),
                                     block.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(32))
        if not row.any():
            block[:] = 0  # of zeros its codes are whatever lay on the stack
    return out


def main():
    rows = rows_of(np.random.default_rng(21))
    types = {}
    for name in TYPES:
        blocks = gguf.quantize(rows.astype(np.float32), gguf.GGMLQuantizationType[name])
        types[name.lower()] = blocks.tobytes().hex()
    if len(sys.argv) > 2:
        types["iq4_nl"] = iq4_nl(sys.argv[2], rows).tobytes().hex()
    with open(sys.argv[1], "w", encoding="ascii") as out:
        json.dump({"gguf_py": importlib.metadata.version("gguf"),
                   "rows": rows.tobytes().hex(), "types": types}, out, indent=1)
        out.write("\n")


main()
