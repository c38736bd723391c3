#!/usr/bin/env python3
"""Writes dequantize.json: blocks of every weight type, and the floats that gguf-py makes of them.

    python3 tests/golden/make_dequantize.py tests/golden/dequantize.json

Needs the packages gguf and numpy. Bytes are random; a block's own scales are random finite f16
numbers of all magnitudes, subnormal ones included. Bytes and little-endian floats are in hex.
"""
import importlib.metadata
import json
import sys

import gguf
import numpy as np

# name: (blocks, where a block's f16 scales are)
TYPES = {
    "F32": (32, []), "F16": (64, [0]), "BF16": (64, []),
    "Q4_0": (6, [0]), "Q4_1": (6, [0, 2]), "Q5_0": (6, [0]), "Q5_1": (6, [0, 2]),
    "Q8_0": (6, [0]), "Q4_K": (3, [0, 2]), "Q5_K": (3, [0, 2]), "Q6_K": (3, [208]),
}


def finite_half(rng):
    return rng.integers(0, 0x7C00) | rng.integers(0, 2) << 15


def blocks_of(name, count, halves, rng):
    kind = gguf.GGMLQuantizationType[name]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    if name == "F32":
        return rng.standard_normal(count).astype(np.float32).view(np.uint8)
    if name == "BF16":
        return (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(
            np.uint16).view(np.uint8)
    data = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for row in data:
        for at in halves:
            row[at:at + 2] = np.array([finite_half(rng)], np.uint16).view(np.uint8)
    return data.reshape(-1)


def main():
    rng = np.random.default_rng(20)
    types = {}
    for name, (count, halves) in TYPES.items():
        data = blocks_of(name, count, halves, rng)
        values = gguf.dequantize(data, gguf.GGMLQuantizationType[name]).astype("<f4").reshape(-1)
        assert np.isfinite(values).all()
        types[name] = {"bytes": data.tobytes().hex(), "values": values.tobytes().hex()}
    with open(sys.argv[1], "w", encoding="ascii") as out:
        json.dump({"gguf_py": importlib.metadata.version("gguf"), "types": types}, out, indent=1)
        out.write("\n")


main()
