#!/usr/bin/env python3
"""What each part of `allotted2` to `allotted4` is worth to the attention weights, step by step.

    key_bits.py TEXT ROPE_BASE half|pairs

TEXT is the folder of a text that `eval --method exact --dump` writes, with `keys` and `exact` in
it; the last word says which channels the rotary embedding turns together, those half a head apart
or neighbours. Needs numpy. Each line is a code of the keys, all but the first 4 and the last 32 of
the prompt, with the bits a channel that it has, scales among them: its error as a share of the
keys' squares, and KL(weights || weights by the code) of the later half of the steps, means over
layers, heads and steps. Queries to go by are those of the earlier half.
"""
import json
import pathlib
import sys

import numpy

SINKS, RECENT, GROUP, UNIT = 4, 32, 32, 8
# kernels/format/row_allotted.h, and what codes of so many bits leave of a normal variance.
LINEAR = [0, 1.5958, 1.7850, 1.8862, 1.9233, 1.9507, 1.9735, 2.0005, 2.0300]
CUBIC = [0, 0, 0.4079, 0.7421, 1.0751, 1.3767, 1.6687, 1.9426, 2.2064]
LEFT = [1, 0.3634, 0.1175, 0.03462, 0.009688, 0.002649, 0.000716, 0.000192, 0.000051]


def hadamard(size):
    matrix = numpy.ones((1, 1))
    while len(matrix) < size:
        matrix = numpy.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / numpy.sqrt(size)


def turned(keys, angle, layout):
    half = keys.shape[-1] // 2
    pair = (slice(0, half), slice(half, None)) if layout == "half" else (slice(0, None, 2),
                                                                         slice(1, None, 2))
    out = numpy.empty_like(keys)
    out[:, pair[0]] = keys[:, pair[0]] * numpy.cos(angle) - keys[:, pair[1]] * numpy.sin(angle)
    out[:, pair[1]] = keys[:, pair[1]] * numpy.cos(angle) + keys[:, pair[0]] * numpy.sin(angle)
    return out


def by_range(values, bits):
    """Between the least and the greatest of each GROUP along the last axis."""
    groups = values.reshape(*values.shape[:-1], -1, GROUP)
    least = groups.min(-1, keepdims=True)
    scale = (groups.max(-1, keepdims=True) - least) / ((1 << bits) - 1)
    scale[scale == 0] = 1
    return (numpy.round((groups - least) / scale) * scale + least).reshape(values.shape)


def nearest_level(values, bits):
    at = (2 * numpy.arange(1 << bits) + 1) / (1 << bits) - 1
    level = at * (LINEAR[bits] + CUBIC[bits] * at * at)
    return level[numpy.searchsorted((level[1:] + level[:-1]) / 2, values)]


def by_row(values, widths, scales=8):
    """Of values by spreads, each channel in so many bits, under the best scale of each row that is
    tried, or of none, under 1."""
    spread = numpy.sqrt((values ** 2).mean(0)) + 1e-9
    away, coded = values / spread, numpy.flatnonzero(widths)
    weight = spread[coded] ** 2
    top = numpy.array([LINEAR[w] + CUBIC[w] for w in widths[coded]])
    widest = (numpy.abs(away[:, coded]) / top).max(1, keepdims=True) + 1e-9
    best, least = numpy.zeros_like(values), numpy.full(len(values), numpy.inf)
    for step in range(max(1, scales)):
        scale = widest * 2 ** (-step / 2) if scales else 1
        level = numpy.zeros_like(values)
        for bits in numpy.unique(widths[coded]):
            of = widths == bits
            level[:, of] = nearest_level(away[:, of] / scale, bits)
        if scales:
            level *= ((weight * away[:, coded] * level[:, coded]).sum(1, keepdims=True)
                      / (weight * level[:, coded] ** 2).sum(1, keepdims=True))
        missed = (weight * (away - level)[:, coded] ** 2).sum(1)
        better = missed < least
        least[better], best[better] = missed[better], level[better]
    return best * spread


def allotted(values, asked, bits, scales=8):
    dim = values.shape[1]
    worth = values.var(0) * asked
    order = numpy.argsort(-worth, kind="stable")
    of_unit = worth[order].reshape(-1, UNIT).sum(1)
    width = numpy.zeros(len(of_unit), int)
    for _ in range(dim * bits // 8 - 4):
        gain = [u * (LEFT[w] - LEFT[w + 1]) if w < 8 else 0 for u, w in zip(of_unit, width)]
        width[numpy.argmax(gain)] += 1
    widths = numpy.empty(dim, int)
    widths[order] = numpy.repeat(width, UNIT)
    return by_row(values, widths, scales)


def by_channel(keys, bits):
    rows = len(keys) // GROUP * GROUP
    return numpy.concatenate([by_range(keys[:rows].T, bits).T, keys[rows:]])


def codes_of(keys, angle, layout, asked):
    """[bits a channel, name, keys as they are read back]"""
    dim = keys.shape[1]
    scale = 16 / dim
    plain = turned(keys, -angle, layout)
    mean = plain.mean(0)
    centred, rotation = plain - mean, hadamard(dim)
    half = dim // 2
    pairs = asked.reshape(2, half) if layout == "half" else asked.reshape(half, 2).T
    together = pairs.mean(0) + 1e-3 * asked.mean()
    together = numpy.tile(together, 2) if layout == "half" else numpy.repeat(together, 2)

    def back(values):
        return turned(values + mean, angle, layout)
    yield 3.0, "ranges of 32 rows by channel (kivi2)", by_channel(keys, 2)
    yield 5.0, "the same, kivi4", by_channel(keys, 4)
    yield 3.0, "rotated, ranges of 32 channels", turned(by_range(plain @ rotation, 2) @ rotation.T,
                                                        angle, layout)
    yield 3.0, "the same, without means", back(by_range(centred @ rotation, 2) @ rotation.T)
    for bits in 2, 3:
        levels = by_row(centred @ rotation, numpy.full(dim, bits)) @ rotation.T
        yield bits + scale, "rotated, without means, normal levels", back(levels)
    yield 3 + scale, "without means, normal levels, not rotated", back(
        by_row(centred, numpy.full(dim, 3)))
    everyone = numpy.ones(dim)
    yield 3 - scale, "bits by variance", back(allotted(centred, everyone, 3))
    yield 3 - 2 * scale, "bits by variance and queries, no scale of rows", back(
        allotted(centred, together, 3, scales=0))
    yield 3 - scale, "bits by variance and queries, after the embedding", (
        allotted(keys - keys.mean(0), together, 3) + keys.mean(0))
    for bits in 2, 3, 4:
        yield bits - scale, f"bits by variance and queries (allotted{bits})", back(
            allotted(centred, together, bits))


def weights_of(queries, keys):
    score = queries @ keys.T
    score -= score.max(1, keepdims=True)
    return score - numpy.log(numpy.exp(score).sum(1, keepdims=True))


def main():
    if len(sys.argv) != 4 or sys.argv[3] not in ("half", "pairs"):
        print("usage: " + __doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    text, base, layout = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    try:
        depth = json.loads((text / "exact" / "about.json").read_text())["depth"]
    except OSError as error:
        print(f"{error.filename}: {error.strerror}: dump a text by 'eval --method exact --dump'",
              file=sys.stderr)
        return 1
    found = {}
    for file in sorted((text / "keys").glob("keys_*.npy")):
        keys = numpy.load(file).astype(float)
        queries = numpy.load(text / "exact" / file.name.replace("keys", "queries")).astype(float)
        steps, dim = queries.shape[0], queries.shape[2]
        sharing = queries.shape[1] // len(keys)
        angle = (numpy.arange(SINKS, depth - RECENT)[:, None]
                 * base ** (-2 * numpy.arange(dim // 2) / dim))
        for head, rows in enumerate(keys):
            mine = queries[:, head * sharing:(head + 1) * sharing]
            asked = (mine[:steps // 2] ** 2).mean((0, 1))
            test = mine[steps // 2:].reshape(-1, dim)
            rows, coded = rows[:depth], rows[SINKS:depth - RECENT]
            wanted = weights_of(test, rows)
            for bits, name, back in codes_of(coded, angle, layout, asked):
                kept = rows.copy()
                kept[SINKS:depth - RECENT] = back
                kl = (numpy.exp(wanted) * (wanted - weights_of(test, kept))).sum(1).mean()
                error = ((back - coded) ** 2).sum() / (coded ** 2).sum()
                found.setdefault((bits, name), []).append((error, kl))
    if not found:
        print(f"{text}/keys: no keys_NN.npy in it, as 'eval --dump' writes them", file=sys.stderr)
        return 1
    for (bits, name), values in found.items():
        print("%5.2f  %-52s error %.4f  KL %.4f" % (bits, name, *numpy.mean(values, axis=0)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
