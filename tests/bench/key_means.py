#!/usr/bin/env python3
"""What the means of keys by channel cost a code of 2 bits, before and after a Hadamard rotation.

    key_means.py KEYS ROPE_BASE half|pairs

KEYS is the folder `keys` that `eval --dump` writes; the last word says which channels the rotary
embedding turns together, those half a head apart or neighbours. Needs numpy. Prints, as medians
over the layers and as shares of the keys' squares: what the means by channel hold before the
embedding; and the error of 2 bits for each 32 channels of a rotated key, the same with the means
taken off first, and 2 bits for each 32 rows of a channel after the embedding. The first 4 rows are
left out.
"""
import pathlib
import sys

import numpy

SINKS = 4
GROUP = 32


def hadamard(size):
    matrix = numpy.ones((1, 1))
    while len(matrix) < size:
        matrix = numpy.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / numpy.sqrt(size)


def before_embedding(keys, base, layout):
    dim = keys.shape[-1]
    angle = numpy.arange(keys.shape[1])[:, None] * base ** (-2 * numpy.arange(dim // 2) / dim)
    if layout == "half":
        first, second = keys[..., :dim // 2], keys[..., dim // 2:]
    else:
        first, second = keys[..., 0::2], keys[..., 1::2]
    cosine, sine = numpy.cos(angle), numpy.sin(angle)
    return numpy.concatenate([first * cosine + second * sine, second * cosine - first * sine], -1)


def coded(values):
    """In 2 bits for each GROUP along the last axis, from its least to its largest."""
    groups = values.reshape(*values.shape[:-1], -1, GROUP)
    least = groups.min(-1, keepdims=True)
    scale = (groups.max(-1, keepdims=True) - least) / 3
    scale[scale == 0] = 1
    return (numpy.round((groups - least) / scale) * scale + least).reshape(values.shape)


def measure(keys, base, layout):
    plain = before_embedding(keys, base, layout)
    rows = (keys.shape[1] - SINKS) // GROUP * GROUP
    keys, plain = (each[:, SINKS:SINKS + rows] for each in (keys, plain))
    squares = (plain ** 2).sum()
    mean = plain.mean(1, keepdims=True)
    rotation = hadamard(keys.shape[-1])

    def lost(values):
        turned = values @ rotation
        return ((coded(turned) - turned) ** 2).sum() / squares
    channels = keys.transpose(0, 2, 1)
    return ((mean ** 2).sum() * rows / squares, lost(plain), lost(plain - mean),
            ((coded(channels) - channels) ** 2).sum() / squares)


def named_layers(usage):
    """Of the command line: the keys of each layer, by its file's name, base and layout."""
    if len(sys.argv) != 4 or sys.argv[3] not in ("half", "pairs"):
        print("usage: " + usage.splitlines()[2].strip(), file=sys.stderr)
        sys.exit(2)
    layers = sorted(pathlib.Path(sys.argv[1]).glob("*.npy"))
    if not layers:
        print(f"{sys.argv[1]}: no keys_NN.npy in it, as 'eval --dump' writes them", file=sys.stderr)
        sys.exit(1)
    keys = {layer.stem: numpy.load(layer).astype(float) for layer in layers}
    return keys, float(sys.argv[2]), sys.argv[3]


def main():
    layers, base, layout = named_layers(__doc__)
    found = [measure(keys, base, layout) for keys in layers.values()]
    print("of %d layers: means %.2f, rotated %.3f, rotated without them %.3f, by channel %.3f"
          % (len(layers), *numpy.median(found, axis=0)))


if __name__ == "__main__":
    main()
