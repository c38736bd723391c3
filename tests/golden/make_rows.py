#!/usr/bin/env python3
"""Writes rows/: keys and values of some layers of real models, for codecs to be tried on.

    make_rows.py SmolLM2.gguf gemma-3.gguf      (needs numpy and gguf, PyPI)

By forward.py, over recorded prompts and their continuations. A file is little-endian: f16, keys,
rotated, then values, each [KV heads][rows][size]; then f32 [KV heads][size], the mean square of
each channel of the last 32 rows' queries, rotated. rows/about.json says what is in which.
"""
import hashlib
import json
import pathlib
import sys

import numpy as np
from forward import INTERLEAVED, Model, forward

HERE = pathlib.Path(__file__).resolve().parent
FIRST, MOST = 4, 160  # positions: behind the sinks, which no method codes
ASKED = 32  # positions whose queries a fitter goes by
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
            keys, values, queries = rows[layer]
            sides = [side[FIRST:].transpose(1, 0, 2).astype("<f2") for side in (keys, values)]
            heads, count, size = sides[0].shape
            by_head = queries[-ASKED:].transpose(1, 0, 2).reshape(heads, -1, size)
            squares = np.mean(by_head**2, axis=1).astype("<f4")
            file = f"{name}_{layer}.rows"
            (HERE / "rows" / file).write_bytes(b"".join(part.tobytes()
                                                        for part in (*sides, squares)))
            about[file] = {
                "model_sha256": recorded["model_sha256"], "prompt": prompt, "layer": layer,
                "heads": heads, "rows": count, "size": size, "first_position": FIRST,
                "rope_base": model.get("rope.freq_base", 10000.0),
                "rope_pairs": "neighbours" if model.arch in INTERLEAVED else "halves"}
    (HERE / "rows" / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
