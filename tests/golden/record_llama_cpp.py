#!/usr/bin/env python3
"""Records what llama.cpp says of the prompts: greedy_*.json, logits_*.json and nll.json.

usage: record_llama_cpp.py greedy|logits|nll MODEL.gguf OUT.json [PROMPT ...]

    python3 -m venv v && v/bin/pip install llama-cpp-python==0.3.36 gguf==0.19.0 numpy xxhash

The reference is the model in float32: its weights are dequantised by gguf-py into a file beside
OUT.json for the time of the run (four bytes a parameter), its KV is float32, flash attention is
off, one thread computes. PROMPT is a name in prompts/ or prompts/long/; without any, those that
OUT.json has already, else all of them. Their entries in OUT.json are made or replaced, others stay.
Hours for all long prompts.
"""
import ctypes
import hashlib
import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np
import xxhash
from gguf.quants import dequantize

import forward

HERE = pathlib.Path(__file__).resolve().parent
BATCH = 512
GREEDY_STEPS = {"short": 48, "long": 32}
LARGEST = 32  # logits that are recorded of a position
ABOUT = {
    "greedy":
        "Greedy continuations of the prompts in prompts/ and prompts/long/, and the margin of "
        "every step (first minus second logit). Tokens are the model's own (special tokens in the "
        "text are recognised; the model's leading token is added where it asks for one). "
        "tokens_sha256: of the token ids in decimal joined by commas; tokens_xxh128: the same "
        "under XXH3 with 128 bits. A continuation ends early after an end-of-generation token.",
    "logits":
        "The 32 largest logits (largest first) and the log-sum-exp of all after given positions of "
        "a prompt (position 0: after its first token). positions: llama.cpp. double: the same from "
        "a double precision pass in numpy over the same weights (forward.py), same ids; "
        "error_reference: largest absolute difference between the two over the whole vocabulary.",
    "nll":
        "Mean negative log-likelihood in nats of the tokens of a prompt from the second on, each "
        "given all before it. mean_nll: the float32 reference; mean_nll_as_stored: llama.cpp on "
        "the file as stored, float16 KV, default flash attention.",
}


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_float32(source, target):
    """The model with every weight dequantised."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        value = gguf.LlamaFileType.ALL_F32 if key == "general.file_type" else field.contents()
        writer.add_key_value(key, value, field.types[0],
                             sub_type=field.types[-1] if is_array else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type)
                          .astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Reader:
    """One model, one text at a time, a batch of tokens after the other."""

    REFERENCE = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32,
                 "flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED}
    AS_STORED = {}

    def __init__(self, path, settings):
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            sys.exit(f"{path}: llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.words = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.settings = settings
        self.context = None

    def tokens(self, text):
        ids = (llama_cpp.llama_token * (len(text) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, text, len(text), ids, len(ids), True, True)
        return list(ids[:count])

    def ends(self, token):
        return llama_cpp.llama_vocab_is_eog(self.vocab, token)

    def start(self, positions):
        if self.context:
            llama_cpp.llama_free(self.context)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = positions, BATCH, BATCH
        parameters.n_threads = parameters.n_threads_batch = 1
        for name, value in self.settings.items():
            setattr(parameters, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.length = 0

    def read(self, tokens, wanted=lambda position: True):
        """Yields the position and the logits after each token whose position is wanted."""
        for first in range(0, len(tokens), BATCH):
            piece = tokens[first:first + BATCH]
            batch = llama_cpp.llama_batch_init(len(piece), 0, 1)
            batch.n_tokens = len(piece)
            asked = []
            for i, token in enumerate(piece):
                batch.token[i], batch.pos[i] = token, self.length + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = wanted(self.length + i)
                if batch.logits[i]:
                    asked.append(i)
            if llama_cpp.llama_decode(self.context, batch) != 0:
                sys.exit("llama.cpp cannot decode")
            for i in asked:
                logits = llama_cpp.llama_get_logits_ith(self.context, i)
                yield self.length + i, np.ctypeslib.as_array(logits, (self.words,)).copy()
            llama_cpp.llama_batch_free(batch)
            self.length += len(piece)

    def last(self, tokens):
        end = self.length + len(tokens) - 1
        return next(iter([*self.read(tokens, lambda position: position == end)]))[1]


def log_sum_exp(logits):
    largest = logits.max()
    return float(largest + np.log(np.exp(logits.astype(np.float64) - largest).sum()))


def prompt_of(name):
    """Its bytes and whether it is "short" or "long"."""
    path = HERE / "prompts" / f"{name}.txt"
    if path.is_file():
        return path.read_bytes(), "short"
    return (HERE / "prompts" / "long" / f"{name}.txt").read_bytes(), "long"


def record_greedy(reader, name):
    text, kind = prompt_of(name)
    tokens = reader.tokens(text)
    joined = ",".join(map(str, tokens)).encode()
    entry = {"sha256": hashlib.sha256(text).hexdigest(), "n_tokens": len(tokens),
             "tokens_sha256": hashlib.sha256(joined).hexdigest()}
    if kind == "short":
        entry["tokens"] = tokens
    else:
        entry["tokens_xxh128"] = xxhash.xxh3_128_hexdigest(joined)
    steps = GREEDY_STEPS[kind]
    reader.start(len(tokens) + steps + 8)
    greedy, margin, fed = [], [], tokens
    while len(greedy) < steps and not (greedy and reader.ends(greedy[-1])):
        logits = reader.last(fed)
        second, first = np.sort(np.partition(logits, -2)[-2:])
        greedy.append(int(logits.argmax()))
        margin.append(round(float(first) - float(second), 4))
        fed = greedy[-1:]
    return entry | {"greedy": greedy, "margin": margin}


def record_logits(reader, name, model):
    text, kind = prompt_of(name)
    tokens = reader.tokens(text)
    end = len(tokens) - 1
    at = [0, len(tokens) // 2, end] if kind == "short" else [BATCH - 1, 2 * BATCH - 1, end]
    reader.start(len(tokens) + 8)
    # Attention over all of a long prompt in double precision would take hours.
    doubles = dict(zip(at, forward.forward(model, tokens, at))) if kind == "short" else {}
    positions = []
    for position, logits in reader.read(tokens, lambda p: p in at):
        ids = np.argsort(-logits, kind="stable")[:LARGEST]
        entry = {"position": position, "ids": ids.tolist(),
                 "logits": [round(float(x), 5) for x in logits[ids]],
                 "log_sum_exp": round(log_sum_exp(logits), 5)}
        if position in doubles:
            double = doubles[position]
            entry |= {"double": [round(float(x), 5) for x in double[ids]],
                      "double_log_sum_exp": round(log_sum_exp(double), 5),
                      "error_reference": float(f"{np.abs(double - logits).max():.3g}")}
        positions.append(entry)
    return {"sha256": hashlib.sha256(text).hexdigest(), "n_tokens": len(tokens),
            "tokens": tokens, "positions": positions}


def mean_nll(reader, tokens):
    reader.start(len(tokens) + 8)
    total = 0.0
    for position, logits in reader.read(tokens, lambda p: p + 1 < len(tokens)):
        total += log_sum_exp(logits) - float(logits[tokens[position + 1]])
    return round(total / (len(tokens) - 1), 6)


def record_nll(reader, name, as_stored):
    text, _ = prompt_of(name)
    tokens = reader.tokens(text)
    return {"sha256": hashlib.sha256(text).hexdigest(), "n_tokens": len(tokens),
            "mean_nll": mean_nll(reader, tokens),
            "mean_nll_as_stored": mean_nll(as_stored, tokens)}


def lines_of(value, indent=0):
    """JSON with a line for each key, and lists of numbers on one."""
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        body = [f"{pad}{json.dumps(key)}: {lines_of(each, indent + 1)}"
                for key, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        body = [pad + lines_of(each, indent + 1) for each in value]
    else:
        return json.dumps(value, separators=(",", ":"))
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(body) + f"\n{' ' * indent}{closing}"


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in ABOUT:
        sys.exit(__doc__)
    kind, path, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()

    answer = json.loads(out.read_text()) if out.is_file() else {}
    answer = {"about": ABOUT[kind]} | answer | {
        "program": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}",
        "precision": "weights dequantised to float32 by gguf-py, float32 KV, flash attention off, "
                     f"one thread, batches of {BATCH}"}
    of_model = answer
    if kind == "nll":
        of_model = answer.setdefault("models", {}).setdefault(path.name, {})
    else:
        of_model["model"] = path.name
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        reference = pathlib.Path(folder) / "float32.gguf"
        write_float32(path, reference)
        of_model |= {"model_sha256": sha256_of(path), "reference_sha256": sha256_of(reference)}
        entries = of_model.setdefault("prompts", {})
        everything = sorted(p.stem for p in (HERE / "prompts").rglob("*.txt"))
        reader = Reader(reference, Reader.REFERENCE)
        if kind == "greedy":
            record = record_greedy
        elif kind == "logits":
            double = forward.Model(reference)
            record = lambda reader, name: record_logits(reader, name, double)
        else:
            stored = Reader(path, Reader.AS_STORED)
            record = lambda reader, name: record_nll(reader, name, stored)
        for name in sys.argv[4:] or list(entries) or everything:
            entries[name] = record(reader, name)
            print(name, file=sys.stderr)
            out.write_text(lines_of(answer) + "\n")


if __name__ == "__main__":
    main()
