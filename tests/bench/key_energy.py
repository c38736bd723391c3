#!/usr/bin/env python3
"""How much of a layer's keys lies in as few directions as a low rank keeps.

    key_energy.py KEYS ROPE_BASE half|pairs

KEYS is the folder `keys` that `eval --dump` writes; the last word says which channels the rotary
embedding turns together, those half a head apart or neighbours. Needs numpy. Prints, for each
layer, the share of the squares of its keys before the embedding, all KV heads together, that the
best 16, 32, ... vectors hold, and at last, on average and in the worst layer, what they hold of
what the keys differ from their mean by.
"""
import numpy

from key_means import before_embedding, named_layers

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
    layers, base, layout = named_layers(__doc__)
    found = numpy.array([measure(keys, base, layout) for keys in layers.values()])
    print("| layer | " + " | ".join(map(str, RANKS)) + " |")
    for name, shares in zip(layers, found):
        line(name, shares[0])
    for n, name in enumerate(("as they are", "less their mean")):
        line(name + ", mean", found[:, n].mean(0))
        line(name + ", worst layer", found[:, n].min(0))


if __name__ == "__main__":
    main()
