"""A plain forward pass in double precision over a GGUF file: the second opinion on expectations.

usage: forward.py MODEL.gguf TOKEN...   -> the logits after the last token, one a line
(needs numpy and gguf, PyPI; small models only: every weight becomes float64)

It shares no code with the program, nor with llama.cpp.
"""
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

INTERLEAVED = {"llama"}  # RoPE turns neighbours; the other architectures turn halves


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.fields = {k: f.contents() for k, f in reader.fields.items() if "." in k
                       and not k.startswith(("GGUF.", "tokenizer."))}
        self.tensors = {t.name: t for t in reader.tensors}
        self.cache = {}
        self.arch = self.fields["general.architecture"]

    def get(self, key, default=None):
        value = self.fields.get(f"{self.arch}.{key}", default)
        if value is None:
            raise KeyError(key)
        return value

    def has(self, name):
        return name in self.tensors

    def weight(self, name):
        if name not in self.cache:
            tensor = self.tensors[name]
            self.cache[name] = dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        return self.cache[name]

    def rows(self, name, rows):
        tensor = self.tensors[name]
        return dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float64)


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, base, scale, factors, interleaved):
    """x: [tokens, heads, head_dim]; the position is the index of the token."""
    tokens, _, size = x.shape
    angles = np.arange(tokens)[:, None] * scale * base ** (-np.arange(0, size, 2) / size) / factors
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    out = np.empty_like(x)
    a, b = ((slice(0, None, 2), slice(1, None, 2)) if interleaved
            else (slice(0, size // 2), slice(size // 2, None)))
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., a] * sin + x[..., b] * cos
    return out


def forward(model, tokens, positions=None, rows=None):
    """Logits [len(positions), vocab]; positions defaults to the last one.

    `rows`, if it is given, gets each layer's keys, values and queries, keys and queries rotated:
    [tokens, heads, size], KV heads or query heads.
    """
    n = len(tokens)
    positions = [n - 1] if positions is None else positions
    arch, get, weight = model.arch, model.get, model.weight
    gemma = arch == "gemma3"
    heads, kv_heads = get("attention.head_count"), get("attention.head_count_kv")
    width, eps = get("embedding_length"), get("attention.layer_norm_rms_epsilon")
    size = get("attention.key_length", width // heads)
    scale = 1 / get("rope.scaling.factor", 1.0)
    window = get("attention.sliding_window", 0)
    factors = weight("rope_freqs.weight") if model.has("rope_freqs.weight") else np.ones(size // 2)
    x = model.rows("token_embd.weight", tokens) * (np.sqrt(width) if gemma else 1.0)
    behind = np.arange(n)[:, None] - np.arange(n)[None, :]
    for i in range(get("block_count")):
        local = gemma and window and i % 6 != 5

        def name(part, layer=i):
            return f"blk.{layer}.{part}"

        def project(part, h, count, layer=i):
            y = h @ weight(name(f"attn_{part}.weight", layer)).T
            if model.has(name(f"attn_{part}.bias", layer)):
                y += weight(name(f"attn_{part}.bias", layer))
            y = y.reshape(n, count, size)
            if model.has(name(f"attn_{part}_norm.weight", layer)):
                y = rms_norm(y, weight(name(f"attn_{part}_norm.weight", layer)), eps)
            return y

        h = rms_norm(x, weight(name("attn_norm.weight")), eps)
        q, k, v = project("q", h, heads), project("k", h, kv_heads), project("v", h, kv_heads)
        rope = ((10000.0, 1.0) if local else (get("rope.freq_base", 10000.0), scale))
        q, k = (rotate(t, *rope, factors, arch in INTERLEAVED) for t in (q, k))
        if rows is not None:
            rows.append((k, v, q))
        mixed = np.empty((n, heads, size))
        for head in range(heads):
            kv = head * kv_heads // heads
            scores = q[:, head] @ k[:, kv].T / np.sqrt(size)
            hidden = behind < 0
            if local:
                hidden = hidden | (behind >= window)
            scores[hidden] = -np.inf
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, head] = scores @ v[:, kv] / scores.sum(axis=1, keepdims=True)
        y = mixed.reshape(n, -1) @ weight(name("attn_output.weight")).T
        if gemma:
            y = rms_norm(y, weight(name("post_attention_norm.weight")), eps)
        x = x + y
        h = rms_norm(x, weight(name("ffn_norm.weight")), eps)
        gate, up = h @ weight(name("ffn_gate.weight")).T, h @ weight(name("ffn_up.weight")).T
        if gemma:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        y = (gate * up) @ weight(name("ffn_down.weight")).T
        if gemma:
            y = rms_norm(y, weight(name("post_ffw_norm.weight")), eps)
        x = x + y
    x = rms_norm(x[positions], weight("output_norm.weight"), eps)
    output = "output.weight" if model.has("output.weight") else "token_embd.weight"
    return x @ weight(output).T


if __name__ == "__main__":
    for value in forward(Model(sys.argv[1]), [int(t) for t in sys.argv[2:]])[0]:
        print(f"{value:.6f}")
