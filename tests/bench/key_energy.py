#!/usr/bin/env python3
"""How much of a layer's keys lies in as few directions as a low rank keeps.

    key_energy.py KEYS ROPE_BASE half|pairs

KEYS is the folder `keys` that `eval --dump` writes; the last word says which channels the rotary
embedding turns together, those half a head apart or neighbours. Needs numpy. Prints, for each
layer, the share of the squares of its keys before the embedding, all KV heads together, that the
best 16, 32, ... vectors hold, and at last, on average and in the worst layer, what they hold of
what the keys differ from their mean by.
"""
import pathlib
import sys

import numpy

from key_means import before_embedding

RANKS = (16, 32, 48, 64, 96, 128)


def held(rows):
    values = numpy.linalg.eigvalsh(rows.T @ rows)[::-1]
    return numpy.cumsum(values)[[rank - 1 for rank in RANKS]] / values.sum()


def measure(keys, base, layout):
    plain = before_embedding(keys, base, layout).transpose(1, 0, 2).reshape(keys.shape[1], -1)
    return held(plain), held(plain - plain.mean(0))


def line(name, shares):
    print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")


def main():
    if len(sys.argv) != 4 or sys.argv[3] not in ("half", "pairs"):
        print("usage: " + __doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    layers = sorted(pathlib.Path(sys.argv[1]).glob("*.npy"))
    if not layers:
        print(f"{sys.argv[1]}: no keys_NN.npy in it, as 'eval --dump' writes them", file=sys.stderr)
        return 1
    found = numpy.array([measure(numpy.load(layer).astype(float), float(sys.argv[2]), sys.argv[3])
                         for layer in layers])
    print("| layer | " + " | ".join(map(str, RANKS)) + " |")
    for layer, shares in zip(layers, found):
        line(layer.stem, shares[0])
    for n, name in enumerate(("as they are", "less their mean")):
        line(name + ", mean", found[:, n].mean(0))
        line(name + ", worst layer", found[:, n].min(0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
