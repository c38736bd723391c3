#!/usr/bin/env python3
"""What a code of keys and values costs, by a forward of its own: a second opinion on `eval`.

    kv_codes.py MODEL.gguf DUMP VARIANT...

DUMP is a folder of `eval --dump` by the method `exact`: its about.json says the tokens, and how
many of them are steps. Needs numpy and gguf from PyPI, and tests/golden/forward.py. The tokens
before the steps are read by full attention in floats, and their keys and values kept in DUMP for
the next call; then the steps are taken together over them as f16, and over what each VARIANT makes
of them. Prints KL(full || variant) in nats, its mean over the steps, and how often the likeliest
token is the same.

A VARIANT is KEYS,VALUES with settings behind it, as in channels4,rows4:group=64:sinks=0:tail=64:

    f16              as they are
    channels2, 4     least to greatest of a channel in 32 rows, of rotated keys
    rows2, 4, 8      least to greatest of `group` channels of a row (32)
    levels4, 8       signed steps of the largest of `group` channels of a row: q4_0
    rank64, ...      of keys before their rotary embedding, all heads of a layer together
    centred64, ...   the same, their mean apart
    sinks, tail      rows at the start (4) and at the end (0) that stay raw, as the steps' own do
    layers           those that are coded: all, or global: those without a window
"""
import json
import pathlib
import re
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "golden"))
from forward import INTERLEAVED, Model, rms_norm  # noqa: E402

BLOCK = 512  # queries at a time
ALONG = 32   # rows


class Forward:
    """Layer by layer over some tokens that follow rows which are there already."""

    def __init__(self, path):
        model = self.model = Model(path)
        get = model.get
        self.layers, self.width = get("block_count"), get("embedding_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.dim = get("attention.key_length", self.width // self.heads)
        self.gemma = model.arch == "gemma3"
        self.window = get("attention.sliding_window", 0) if self.gemma else 0
        self.weights = {}

    def weight(self, name):
        if name not in self.weights:
            self.weights[name] = self.model.weight(name).astype(np.float32)
            del self.model.cache[name]
        return self.weights[name]

    def local(self, layer):
        return bool(self.window) and layer % 6 != 5

    def rotate(self, x, layer, first, back=False):
        """x: [heads, tokens, dim], of which the first token is at position `first`."""
        base = 10000.0 if self.local(layer) else self.model.get("rope.freq_base", 10000.0)
        angle = (first + np.arange(x.shape[1]))[:, None] * base ** (
            -np.arange(0, self.dim, 2) / self.dim)
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        if back:
            sine = -sine
        out, half = np.empty_like(x), self.dim // 2
        a, b = ((slice(0, None, 2), slice(1, None, 2)) if self.model.arch in INTERLEAVED
                else (slice(0, half), slice(half, None)))
        out[..., a] = x[..., a] * cosine - x[..., b] * sine
        out[..., b] = x[..., a] * sine + x[..., b] * cosine
        return out

    def attend(self, layer, q, k, v):
        """q: [heads, n, dim], the last n of the rows k, v: [KV heads, rows, dim]."""
        n, rows, group = q.shape[1], k.shape[1], self.heads // self.kv_heads
        out = np.empty_like(q)
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            at = rows - n + np.arange(start, stop)[:, None]
            low = max(0, rows - n + start + 1 - self.window) if self.local(layer) else 0
            seen = np.arange(low, rows - n + stop)[None, :]
            hidden = seen > at
            if self.local(layer):
                hidden |= seen <= at - self.window
            for head in range(self.heads):
                part = slice(low, rows - n + stop)
                score = q[head, start:stop] @ k[head // group, part].T / np.float32(self.dim**0.5)
                score[hidden] = -np.inf
                np.exp(score - score.max(1, keepdims=True), out=score)
                out[head, start:stop] = score @ v[head // group, part] / score.sum(1, keepdims=True)
        return out

    def run(self, tokens, rows_of):
        """Logits of all tokens, and their own keys and values by layer. rows_of(layer): keys and
        values [KV heads, rows, dim] of what came before."""
        x = self.model.rows("token_embd.weight", tokens).astype(np.float32)
        if self.gemma:
            x *= np.float32(np.sqrt(self.width))
        kept = []
        for layer in range(self.layers):
            def weight(part, layer=layer):
                return self.weight(f"blk.{layer}.{part}.weight")

            def project(part, heads, weight=weight):
                y = (h @ weight("attn_" + part).T).reshape(len(tokens), heads, self.dim)
                if self.gemma and part != "v":
                    y = rms_norm(y, weight(f"attn_{part}_norm"), self.eps)
                return y.transpose(1, 0, 2).astype(np.float32)

            h = rms_norm(x, weight("attn_norm"), self.eps)
            before_k, before_v = rows_of(layer)
            first = before_k.shape[1]
            q = self.rotate(project("q", self.heads), layer, first)
            k = self.rotate(project("k", self.kv_heads), layer, first)
            v = project("v", self.kv_heads)
            kept.append((k, v))
            mixed = self.attend(layer, q, np.concatenate([before_k, k], 1),
                                np.concatenate([before_v, v], 1))
            y = mixed.transpose(1, 0, 2).reshape(len(tokens), -1) @ weight("attn_output").T
            if self.gemma:
                y = rms_norm(y, weight("post_attention_norm"), self.eps)
            x = x + y
            h = rms_norm(x, weight("ffn_norm"), self.eps)
            gate = h @ weight("ffn_gate").T
            if self.gemma:
                gate = 0.5 * gate * (1 + np.tanh(
                    np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate**3)))
            else:
                gate = gate / (1 + np.exp(-gate))
            y = (gate * (h @ weight("ffn_up").T)) @ weight("ffn_down").T
            if self.gemma:
                y = rms_norm(y, weight("post_ffw_norm"), self.eps)
            x = x + y
        return x, kept

    def logits(self, x):
        output = "output" if self.model.has("output.weight") else "token_embd"
        x = rms_norm(x, self.weight("output_norm.weight"), self.eps)
        return (x @ self.weight(output + ".weight").T).astype(np.float64)


def ranges(x, bits):
    """Least to greatest of the last axis."""
    least = x.min(-1, keepdims=True)
    scale = (x.max(-1, keepdims=True) - least) / (2**bits - 1)
    scale[scale == 0] = 1
    return np.round((x - least) / scale) * scale + least


def levels(x, bits):
    """Signed steps of the largest of the last axis, which has one step more on its own side."""
    largest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    scale = largest / -(2 ** (bits - 1))
    scale[scale == 0] = 1
    return np.minimum(np.round(x / scale), 2 ** (bits - 1) - 1) * scale


def by_channel(x, bits):
    heads, rows, dim = x.shape
    full = rows // ALONG * ALONG
    out = x.copy()
    turned = x[:, :full].transpose(0, 2, 1).reshape(heads, dim, -1, ALONG)
    out[:, :full] = ranges(turned, bits).reshape(heads, dim, full).transpose(0, 2, 1)
    return out  # what is no whole group stays raw


def by_row(x, bits, group, rule):
    return rule(x.reshape(*x.shape[:-1], -1, group), bits).reshape(x.shape)


def low_rank(plain, rank, centred):
    heads, rows, dim = plain.shape
    flat = plain.transpose(1, 0, 2).reshape(rows, -1).astype(np.float64)
    mean = flat.mean(0) if centred else np.zeros(flat.shape[1])
    _, vectors = np.linalg.eigh((flat - mean).T @ (flat - mean))
    basis = vectors[:, -rank:]
    near = (flat - mean) @ basis @ basis.T + mean
    return near.reshape(rows, heads, dim).transpose(1, 0, 2).astype(np.float32)


class Variant:
    def __init__(self, text):
        sides, *settings = text.split(":")
        self.text = text
        self.keys, self.values = sides.split(",")
        self.set = {"group": "32", "sinks": "4", "tail": "0", "layers": "all"}
        for setting in settings:
            name, value = setting.split("=")
            if name not in self.set:
                sys.exit(f"{text}: no setting '{name}'; there are {', '.join(self.set)}")
            self.set[name] = value

    def code(self, x, how, forward, layer):
        kind, number = re.fullmatch(r"([a-z]+)(\d+)", how).groups()
        sinks, end = int(self.set["sinks"]), x.shape[1] - int(self.set["tail"])
        coded = x[:, sinks:end]
        if kind == "channels":
            coded = by_channel(coded, int(number))
        elif kind in ("rows", "levels"):
            coded = by_row(coded, int(number), int(self.set["group"]),
                           ranges if kind == "rows" else levels)
        elif kind in ("rank", "centred"):
            plain = low_rank(forward.rotate(x, layer, 0, back=True), int(number), kind == "centred")
            coded = forward.rotate(plain, layer, 0)[:, sinks:end]
        elif how != "f16":
            sys.exit(f"{self.text}: no code '{how}'")
        return np.concatenate([x[:, :sinks], coded, x[:, end:]], 1)

    def rows(self, forward, layer, k, v):
        if self.set["layers"] == "global" and forward.local(layer):
            return k, v
        return self.code(k, self.keys, forward, layer), self.code(v, self.values, forward, layer)


def log_softmax(x):
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def main():
    if len(sys.argv) < 4:
        print("usage: " + __doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    variants = [Variant(text) for text in sys.argv[3:]]
    dump = pathlib.Path(sys.argv[2])
    about = json.loads((dump / "exact" / "about.json").read_text())
    tokens, depth = about["tokens"], about["depth"]
    steps = tokens[depth:depth + about["steps"]]
    forward = Forward(sys.argv[1])
    kept = dump / "floats.npz"
    if not kept.exists():
        nothing = np.zeros((forward.kv_heads, 0, forward.dim), np.float32)
        _, rows = forward.run(tokens[:depth], lambda layer: (nothing, nothing))
        np.savez(kept, *[each for pair in rows for each in pair])
    stored = np.load(kept)
    rows = [[stored[f"arr_{2 * layer + side}"].astype(np.float16).astype(np.float32)
             for side in (0, 1)] for layer in range(forward.layers)]
    full = log_softmax(forward.logits(forward.run(steps, lambda layer: rows[layer])[0]))
    for variant in variants:
        found, _ = forward.run(
            steps, lambda layer, of=variant: of.rows(forward, layer, *rows[layer]))
        near = log_softmax(forward.logits(found))
        kl = (np.exp(full) * (full - near)).sum(1)
        same = np.mean(full.argmax(1) == near.argmax(1))
        print(f"{dump.name} {variant.text} KL {kl.mean():.5f} top-1 {same:.1%}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
