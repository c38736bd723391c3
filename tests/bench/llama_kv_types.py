#!/usr/bin/env python3
"""What llama.cpp's own KV types cost on a text: the other side of docs/codecs.md's coded rows.

    llama_kv_types.py MODEL.gguf STEPS TEXT...

Needs xllamacpp and numpy from PyPI. A text's last STEPS tokens are decoded one by one, as they are,
with keys and values in f16, q8_0 and q4_0. Prints for each text and type KL(f16 || type) in nats
over the whole distributions, its mean over the steps, how often the likeliest token is f16's, and
the perplexity. Every type reads all of the text itself, prefill included, with flash attention,
which llama.cpp wants for coded values.
"""
import json
import math
import pathlib
import sys
import urllib.request

import numpy
import xllamacpp

TYPES = ("f16", "q8_0", "q4_0")


def serve(model, kv_type):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 8192
    params.n_parallel = 1
    params.cpuparams.n_threads = 2
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cache_type_k = getattr(xllamacpp.ggml_type, "GGML_TYPE_" + kv_type.upper())
    params.cache_type_v = params.cache_type_k
    params.warmup = False
    return xllamacpp.Server(params)


def ask(llama, path, request):
    sent = urllib.request.Request(llama.listening_address + path, json.dumps(request).encode(),
                                  {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=3600) as answer:
        return json.load(answer)


def log_probabilities(llama, tokens):
    """Of what may come after these, by token."""
    answer = ask(llama, "/completion", {
        "prompt": tokens, "n_predict": 1, "n_probs": 1_000_000, "temperature": 0.0,
        "cache_prompt": True, "post_sampling_probs": False})
    listed = answer["completion_probabilities"][0]["top_logprobs"]
    found = numpy.empty(len(listed))
    for each in listed:
        found[each["id"]] = each["logprob"]
    return found


def main():
    if len(sys.argv) < 4 or not sys.argv[2].isdigit():
        print("usage: " + __doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    model, steps, texts = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    raw = {}
    print("| KV type | text | KL | top-1 | perplexity |\n| --- | --- | --- | --- | --- |")
    for kv_type in TYPES:
        llama = serve(model, kv_type)
        for text in texts:
            content = pathlib.Path(text).read_text()
            tokens = ask(llama, "/tokenize", {"content": content, "add_special": True})["tokens"]
            first = len(tokens) - steps
            found = [log_probabilities(llama, tokens[:n]) for n in range(first, len(tokens))]
            full = raw.setdefault(text, found)
            kl = [float(numpy.exp(p) @ (p - q)) for p, q in zip(full, found)]
            same = numpy.mean([p.argmax() == q.argmax() for p, q in zip(full, found)])
            lost = -numpy.mean([q[t] for q, t in zip(found, tokens[first:])])
            print(f"| {kv_type} | {pathlib.Path(text).name} | {numpy.mean(kl):.5f} | {same:.1%} | "
                  f"{math.exp(lost):.4f} |", flush=True)
        del llama
    return 0


if __name__ == "__main__":
    sys.exit(main())
