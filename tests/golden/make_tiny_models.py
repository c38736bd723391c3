"""Makes the tiny seeded models in tiny/: one or two for every supported architecture.

usage: make_tiny_models.py OUT_DIR   (needs numpy and gguf, PyPI)

They are random networks, but not feeble ones: weights are large enough that attention is sharp and
the logits are well spread, so a wrong rotation, norm, window or bias shows in every logit.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import quantize

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>"
    "\\n\\n' + message['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\\n' + "
    "message['content'] + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def byte_to_unicode():
    """The printable stand-in of every byte in byte-level BPE vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


def bpe_vocab(writer, pre, specials, bos, eos, add_bos, template):
    """256 bytes, a few merges of English text, then the special tokens."""
    letters = byte_to_unicode()
    space = letters[0x20]
    pairs = [(space, "t"), ("h", "e"), (space + "t", "he"), ("i", "n"), ("a", "n"), ("e", "r"),
             (space, "a"), ("r", "e"), ("o", "n"), (space, "s"), ("a", "t"), ("an", "d"),
             (space, "o"), ("in", "g"), ("e", "n"), (space, "w"), (space, "in"), ("o", "u")]
    tokens = [letters[b] for b in range(256)] + [a + b for a, b in pairs]
    kinds = [NORMAL] * len(tokens) + [CONTROL] * len(specials)
    tokens += specials
    assert len(tokens) == len(set(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{a} {b}" for a, b in pairs])
    writer.add_bos_token_id(tokens.index(bos))
    writer.add_eos_token_id(tokens.index(eos))
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(template)
    return len(tokens), tokens.index(bos)


def spm_vocab(writer, specials, bos, eos, add_space_prefix, template):
    """The special tokens, 256 byte tokens, then pieces with the scores of their ranks."""
    pieces = ["\u2581", "e", "t", "a", "o", "n", "i", "s", "r", "h", "\u2581t", "he", "\u2581the",
              "in", "er", "an", "\u2581a", "on", "\u2581s"]
    tokens = specials + [f"<0x{b:02X}>" for b in range(256)] + pieces
    kinds = [UNKNOWN if t == "<unk>" else CONTROL for t in specials]
    kinds += [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * (len(specials) + 256) + [-float(rank) for rank in range(len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokens.index(bos))
    writer.add_eos_token_id(tokens.index(eos))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(add_space_prefix)
    if template:
        writer.add_chat_template(template)
    return len(tokens), tokens.index(bos)


def k_scales(scales, mins):
    """Eight 6-bit scales and eight 6-bit minima in the 12 bytes of Q4_K and Q5_K."""
    low, high = slice(0, 4), slice(4, 8)
    a = scales[:, low] | (scales[:, high] & 0x30) << 2
    b = mins[:, low] | (mins[:, high] & 0x30) << 2
    c = (scales[:, high] & 0x0F) | (mins[:, high] & 0x0F) << 4
    return np.concatenate([a, b, c], axis=1).astype(np.uint8)


def half_bytes(values):
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def k_blocks(rng, kind, rows, columns, deviation):
    """Random blocks of a K type: gguf-py cannot encode these types, and random bits cover more."""
    blocks = rows * columns // 256
    ragged = rng.uniform(0.6, 1.4, blocks)
    if kind == Type.Q6_K:
        scales = rng.integers(24, 128, (blocks, 16)) * rng.choice([-1, 1], (blocks, 16))
        step = deviation / (18.5 * 80) * ragged
        quants = rng.integers(0, 256, (blocks, 192), dtype=np.uint8)
        data = np.concatenate(
            [quants, scales.astype(np.int8).view(np.uint8), half_bytes(step)], axis=1)
    else:
        levels = 16 if kind == Type.Q4_K else 32
        scales = rng.integers(12, 64, (blocks, 8))
        mins = np.clip(scales + rng.integers(-4, 5, (blocks, 8)), 0, 63)
        step = deviation / (levels * 0.2887 * 40) * ragged
        quants = rng.integers(0, 256, (blocks, 128 if levels == 16 else 160), dtype=np.uint8)
        data = np.concatenate([half_bytes(step), half_bytes(step * (levels - 1) / 2),
                               k_scales(scales, mins), quants], axis=1)
    return data.reshape(rows, -1)


class Net:
    """Adds the tensors of one network to a file, with the encoding asked for each."""

    def __init__(self, writer, seed, types):
        self.writer, self.rng, self.types = writer, np.random.default_rng(seed), types

    def matrix(self, name, rows, columns, gain=1.0):
        role = name.split(".")[-2]
        kind = self.types.get(name, self.types.get(role, self.types["*"]))
        deviation = gain / np.sqrt(columns)
        if kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
            data = k_blocks(self.rng, kind, rows, columns, deviation)
        else:
            values = self.rng.normal(0, deviation, (rows, columns)).astype(np.float32)
            data = quantize(values, kind)
        self.writer.add_tensor(name, data, raw_dtype=kind)

    def vector(self, name, size, mean=0.0, deviation=0.3):
        values = self.rng.normal(mean, deviation, size).astype(np.float32)
        self.writer.add_tensor(name, values)


def build(path, arch, seed, types, layers, width, heads, kv_heads, head_dim, inner, vocab,
          base=10000.0, tied=False, bias=False, qk_norm=False, post_norm=False, window=None,
          factors=None, scaling=None, eps=1e-5):
    writer = GGUFWriter(path, arch)
    writer.add_name(path.stem)
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_rope_freq_base(base)
    if head_dim * heads != width:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch == "llama":
        writer.add_rope_dimension_count(head_dim)
    if window:
        writer.add_sliding_window(window)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)
    words, bos = vocab(writer)
    if arch == "llama":
        writer.add_vocab_size(words)

    net = Net(writer, seed, types)
    # gemma3 multiplies its embeddings by sqrt(width): kept small, or tied logits echo the input.
    spread = 4.0
    loud = 8.0 if arch == "gemma3" else 1.0
    net.matrix("token_embd.weight", words, width, spread / loud if tied else np.sqrt(width))
    if not tied:
        net.matrix("output.weight", words, width, spread)
    net.vector("output_norm.weight", width, loud, 0.3 * loud)
    if factors:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    for i in range(layers):
        block = f"blk.{i}."
        net.vector(block + "attn_norm.weight", width, 1.0)
        net.matrix(block + "attn_q.weight", heads * head_dim, width, 1.6)
        net.matrix(block + "attn_k.weight", kv_heads * head_dim, width, 1.6)
        net.matrix(block + "attn_v.weight", kv_heads * head_dim, width)
        net.matrix(block + "attn_output.weight", width, heads * head_dim)
        if bias:
            net.vector(block + "attn_q.bias", heads * head_dim, 0.0, 1.0)
            net.vector(block + "attn_k.bias", kv_heads * head_dim, 0.0, 1.0)
            net.vector(block + "attn_v.bias", kv_heads * head_dim, 0.0, 0.5)
        if qk_norm:
            net.vector(block + "attn_q_norm.weight", head_dim, 1.5)
            net.vector(block + "attn_k_norm.weight", head_dim, 1.5)
        if post_norm:
            net.vector(block + "post_attention_norm.weight", width, 1.0)
            net.vector(block + "post_ffw_norm.weight", width, 1.0)
        net.vector(block + "ffn_norm.weight", width, 1.0)
        net.matrix(block + "ffn_gate.weight", inner, width, 1.5)
        net.matrix(block + "ffn_up.weight", inner, width, 1.5)
        net.matrix(block + "ffn_down.weight", width, inner, 1.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    rng = np.random.default_rng(seed + 1000)
    return [[bos, *rng.integers(4, words, length - 1).tolist()] for length in (7, 96)]


def llama3_factors(head_dim, base, factor=8.0, low=1.0, high=4.0, original=64):
    """Llama 3's frequency divisors, with a trained length short enough to matter here."""
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * np.pi * base ** (2 * i / head_dim)
        smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    llama2 = ["<unk>", "<s>", "</s>"]
    llama3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
              "<|eot_id|>"]
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    gemma = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    chatml_vocab = lambda w: bpe_vocab(  # noqa: E731
        w, "qwen2", chatml, "<|endoftext|>", "<|im_end|>", False, CHATML)
    gemma_vocab = lambda w: spm_vocab(w, gemma, "<bos>", "<eos>", False, GEMMA)  # noqa: E731

    sequences = {}

    def make(name, *args, **kwargs):
        path = out / f"{name}.gguf"
        sequences[path.name] = build(path, *args, **kwargs)

    make("llama_f32", "llama", 11, {"*": Type.F32}, layers=2, width=64, heads=4, kv_heads=2,
         head_dim=16, inner=64, tied=True,
         vocab=lambda w: spm_vocab(w, llama2, "<s>", "</s>", True, None))
    make("llama3_f16", "llama", 32, {"*": Type.F16}, layers=2, width=64, heads=4, kv_heads=1,
         head_dim=16, inner=64, base=500000.0, factors=llama3_factors(16, 500000.0),
         vocab=lambda w: bpe_vocab(w, "llama-bpe", llama3, "<|begin_of_text|>", "<|eot_id|>", True,
                                   LLAMA3))
    mixed = {"*": Type.Q4_0, "token_embd": Type.Q6_K, "attn_q": Type.Q4_K, "attn_k": Type.Q8_0,
             "attn_v": Type.Q5_K, "attn_output": Type.Q5_1, "ffn_gate": Type.Q4_0,
             "ffn_up": Type.Q5_0, "ffn_down": Type.Q4_1, "blk.1.ffn_gate.weight": Type.Q4_K,
             "blk.1.ffn_up.weight": Type.Q5_K, "blk.1.ffn_down.weight": Type.Q6_K}
    make("llama_mixed", "llama", 13, mixed, layers=2, width=256, heads=2, kv_heads=1, head_dim=32,
         inner=256, tied=True,
         vocab=lambda w: bpe_vocab(w, "smollm", chatml, "<|im_start|>", "<|im_end|>", False,
                                   CHATML))
    make("qwen2_bf16", "qwen2", 24, {"*": Type.BF16}, layers=2, width=64, heads=4, kv_heads=2,
         head_dim=16, inner=64, base=1000000.0, tied=True, bias=True, eps=1e-6, vocab=chatml_vocab)
    make("qwen3_q8_0", "qwen3", 15, {"*": Type.Q8_0}, layers=2, width=64, heads=4, kv_heads=2,
         head_dim=32, inner=64, base=1000000.0, qk_norm=True, eps=1e-6, vocab=chatml_vocab)
    make("gemma3_f16", "gemma3", 16, {"*": Type.F16}, layers=6, width=64, heads=2, kv_heads=1,
         head_dim=32, inner=32, base=1000000.0, tied=True, qk_norm=True, post_norm=True, window=16,
         eps=1e-6, vocab=gemma_vocab)
    make("gemma3_scaled_q4_0", "gemma3", 27, {"*": Type.Q4_0, "token_embd": Type.Q8_0}, layers=7,
         width=64, heads=4, kv_heads=2, head_dim=32, inner=64, base=1000000.0, tied=True,
         qk_norm=True, post_norm=True, window=16, scaling=8.0, eps=1e-6, vocab=gemma_vocab)
    (out / "sequences.json").write_text(json.dumps(sequences) + "\n")


main()
