#!/usr/bin/env python3
"""Writes rows/: keys and values of some layers of real models, for codecs to be tried on.

    make_rows.py SmolLM2.gguf gemma-3.gguf      (needs numpy and gguf, PyPI)

By forward.py, over recorded prompts and their continuations. A file is f16, little-endian: keys,
rotated, then values, each [KV heads][rows][size]. rows/about.json says what is in which.
"""
import hashlib
import json
import pathlib
import sys

import numpy as np
from forward import INTERLEAVED, Model, forward

HERE = pathlib.Path(__file__).resolve().parent
FIRST, MOST = 4, 160  # positions: behind the sinks, which no method codes
CHOSEN = [("smollm2", "json", (0, 15)), ("gemma3", "keys_short", (5,))]


def main():
    if len(sys.argv) != 1 + len(CHOSEN):
        print(__doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    about = {}
    for path, (name, prompt, layers) in zip(sys.argv[1:], CHOSEN):
        recorded = json.loads((HERE / f"greedy_{name}.json").read_text())
        if hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() != recorded["model_sha256"]:
            print(f"{path}: not the model of greedy_{name}.json", file=sys.stderr)
            return 1
        entry = recorded["prompts"][prompt]
        model, rows = Model(path), []
        forward(model, (entry["tokens"] + entry["greedy"])[:FIRST + MOST], rows=rows)
        for layer in layers:
            sides = [side[FIRST:].transpose(1, 0, 2).astype("<f2") for side in rows[layer]]
            file = f"{name}_{layer}.f16"
            (HERE / "rows" / file).write_bytes(b"".join(side.tobytes() for side in sides))
            heads, count, size = sides[0].shape
            about[file] = {
                "model_sha256": recorded["model_sha256"], "prompt": prompt, "layer": layer,
                "heads": heads, "rows": count, "size": size, "first_position": FIRST,
                "rope_base": model.get("rope.freq_base", 10000.0),
                "rope_pairs": "neighbours" if model.arch in INTERLEAVED else "halves"}
    (HERE / "rows" / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
