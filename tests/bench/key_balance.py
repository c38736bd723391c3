#!/usr/bin/env python3
"""What codes of keys get wrong of scores, where keys are kept as they are and where each channel is
kept times how large queries are there (runtime/key_balance.h).

    key_balance.py MODEL.gguf TEXT...

TEXT is the folder of a text that `eval --method exact --dump` writes, with `keys` and `exact` in
it, of a model that norms its queries. Needs numpy and gguf. Keys are coded as the sketch does:
less the mean of their cluster of some 24 rows, after a Hadamard rotation, with one scale a row.
Each line is a way to keep them: the error of a score in nats squared, weighed by the attention
that its row gets, without the half percent of the rows that score best, by 1, 2 and 4 bits a
channel, and by the mean alone. Geometric means over layers, KV heads and texts.
"""
import pathlib
import sys

import numpy
from gguf import GGUFReader

ROWS_A_CLUSTER, ROUNDS, STEPS = 24, 6, 160


def hadamard(size):
    matrix = numpy.ones((1, 1))
    while len(matrix) < size:
        matrix = numpy.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / numpy.sqrt(size)).astype(numpy.float32)


def clusters(keys, random):
    """Which one each row is of, by Lloyd's rounds."""
    count = len(keys) // ROWS_A_CLUSTER
    mean = keys[random.choice(len(keys), count, replace=False)].copy()
    for _ in range(ROUNDS):
        of = ((mean * mean).sum(1)[None] - 2 * keys @ mean.T).argmin(1)
        mean, rows = means(keys, of, count), numpy.bincount(of, minlength=count)
        mean[rows == 0] = keys[random.choice(len(keys), (rows == 0).sum())]
    return of


def means(keys, of, count):
    total = numpy.zeros((count, keys.shape[1]), numpy.float32)
    numpy.add.at(total, of, keys)
    return total / numpy.maximum(numpy.bincount(of, minlength=count), 1)[:, None]


def coded(values, bits):
    """Codes and scale fitted to each other in turns."""
    middle, most = ((1 << bits) - 1) / 2, (1 << bits) - 1
    scale = numpy.sqrt((values ** 2).mean(1, keepdims=True)) * (1.0 if bits < 4 else 0.34)
    for _ in range(4):
        scale = numpy.maximum(scale, 1e-9)
        code = numpy.clip(numpy.round(values / scale + middle), 0, most) - middle
        scale = (values * code).sum(1, keepdims=True) / (code ** 2).sum(1, keepdims=True)
    return code * scale


def score_error(queries, scores, error):
    """Of errors of keys, [rows][channels]."""
    weight = numpy.exp(scores - scores.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    off = queries @ error.T
    off -= (weight * off).sum(1, keepdims=True)  # what all are off by changes no weight
    read = len(error) // 200
    edge = numpy.partition(scores, -read, axis=1)[:, [-read]]
    return (weight * (scores < edge) * off ** 2).sum(1).mean()


def sizes(norm):
    """As runtime/model/query_powers.cpp has them, for rotations of channels half a head apart."""
    square = norm.astype(numpy.float64) ** 2
    half = len(square) // 2
    square = numpy.tile((square[:half] + square[half:]) / 2, 2)
    power = numpy.log2(numpy.maximum(square, 1e-3 * square.mean())) / 2
    return 2.0 ** numpy.clip(numpy.round(power - power.mean()), -8, 3)


def main(model, texts):
    tensors = {tensor.name: tensor for tensor in GGUFReader(model).tensors}
    random = numpy.random.default_rng(0)
    found = {}
    for text in map(pathlib.Path, texts):
        for path in sorted((text / "keys").glob("keys_*.npy")):
            layer = int(path.stem[5:])
            kept = sizes(tensors[f"blk.{layer}.attn_q_norm.weight"].data).astype(numpy.float32)
            all_keys = numpy.load(path).astype(numpy.float32)
            asked = numpy.load(text / "exact" / f"queries_{path.stem[5:]}.npy")
            group = asked.shape[1] // len(all_keys)
            for head, keys in enumerate(all_keys):
                queries = asked[:, head * group:(head + 1) * group].reshape(-1, keys.shape[1])
                queries = queries[:STEPS]
                scores = queries @ keys.T
                for name, by in (("as they are", numpy.ones_like(kept)), ("balanced", kept)):
                    of = clusters(keys * by, random)
                    left = keys - means(keys, of, len(keys) // ROWS_A_CLUSTER)[of]
                    turn = hadamard(len(by))
                    lost = [left - coded(left * by @ turn, bits) @ turn / by for bits in (1, 2, 4)]
                    found.setdefault(name, []).append(
                        [score_error(queries, scores, error) for error in (*lost, left)])
    print("| keys | 1 bit | 2 bits | 4 bits | the mean alone |\n| --- | --- | --- | --- | --- |")
    for name, errors in found.items():
        print(f"| {name} |", " | ".join(f"{x:.4f}" for x in
                                        numpy.exp(numpy.log(errors).mean(0))), "|")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
