#!/usr/bin/env python3
"""What the selections of a dump ask of caches, and what they find.

    dump_replay.py METHOD

METHOD is the folder of a method that `eval --dump` writes, beside which `keys` lies. Needs numpy.
A line a layer, and one of all, means over KV heads and steps:

  read      rows read exactly, as a share of all
  coded     rows attended by their codes, likewise
  again     of the rows read, those that the step before read as well
  missed    of the rows read, those that a cache in front of them would not have, which holds so
            many rows as so many steps read and drops the one that was asked for longest ago; the
            first step fills it and is not counted
  mass      of the attention to all rows, as full attention's keys have it, what lies on those read
  best      the same of as many rows, the best of each KV head: what no selection can exceed
"""
import collections
import json
import pathlib
import sys

import numpy

CACHES = 2, 4, 8  # steps


def lists(folder, of, ends, layer, steps):
    """[step][KV head]: positions. None where the layer has no such lists."""
    path = folder / f"{of}_{layer:02}.npy"
    if not path.exists():
        return None
    until = numpy.load(folder / f"{ends}_{layer:02}.npy").reshape(-1)
    cut = numpy.split(numpy.load(path), until[:-1].astype(numpy.int64))
    heads = len(cut) // steps
    return [cut[s * heads:(s + 1) * heads] for s in range(steps)]


def missed(steps, room):
    """Of one KV head, step by step: how many rows that were read after the first were not there."""
    held, count = collections.OrderedDict(), 0
    for step, rows in enumerate(steps):
        count += step > 0 and sum(row not in held for row in rows)
        for row in rows:
            held[row] = None
            held.move_to_end(row)
        while len(held) > room:
            held.popitem(last=False)
    return count


def covered(keys, queries, rows):
    """The share of a KV head's attention that lies on `rows`, and on as many that are best."""
    scores = queries @ keys.T
    weights = numpy.exp(scores - scores.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).mean(0)
    return weights[rows].sum(), numpy.sort(weights)[len(weights) - len(rows):].sum()


def replay(folder, about, layer):
    steps, depth = about["steps"], about["depth"]
    read = lists(folder, "positions", "ends", layer, steps)
    coded = lists(folder, "coded", "coded_ends", layer, steps)
    keys = numpy.load(folder.parent / "keys" / f"keys_{layer:02}.npy").astype(numpy.float32)
    queries = numpy.load(folder / f"queries_{layer:02}.npy")
    heads = len(keys)
    queries = queries.reshape(steps, heads, -1, keys.shape[-1])
    rows = sum(len(one) for step in read for one in step)
    later = sum(len(one) for step in read[1:] for one in step)
    all_rows = heads * sum(depth + s + 1 for s in range(steps))
    by_head = [[step[h].tolist() for step in read] for h in range(heads)]
    again = sum(len(set(one) & set(before))
                for of_head in by_head for before, one in zip(of_head, of_head[1:]))
    mass = [covered(keys[h, :depth + s + 1], queries[s, h], read[s][h])
            for s in range(steps) for h in range(heads)]
    line = {"read": rows / all_rows,
            "coded": sum(len(one) for step in coded or [] for one in step) / all_rows,
            "again": again / max(later, 1)}
    for of_steps in CACHES:
        room = of_steps * rows // (steps * heads)
        line[f"missed, {of_steps} steps"] = (
            sum(missed(of_head, room) for of_head in by_head) / max(later, 1))
    line["mass"], line["best"] = numpy.mean(mass, 0)
    return line


def main(arguments):
    folder = pathlib.Path(arguments[0] if arguments else "")
    if (len(arguments) != 1 or not (folder / "about.json").is_file()
            or not (folder.parent / "keys").is_dir()):
        sys.exit("usage: dump_replay.py METHOD, a folder that `thermocline eval --dump` wrote, "
                 "with keys beside it")
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    lines = {str(layer): replay(folder, about, layer)
             for layer, spec in enumerate(about["layers"]) if spec["window"] == 0}
    if not lines:
        sys.exit(f"dump_replay.py: {folder}: all layers have a window, and are read whole")
    names = list(next(iter(lines.values())))
    lines["all"] = {name: numpy.mean([line[name] for line in lines.values()]) for name in names}
    print("layer  " + "  ".join(f"{name:>15}" for name in names))
    for layer, line in lines.items():
        print(f"{layer:>5}  " + "  ".join(f"{line[name]:15.4f}" for name in names))


if __name__ == "__main__":
    main(sys.argv[1:])
