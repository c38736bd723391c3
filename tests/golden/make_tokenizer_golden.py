#!/usr/bin/env python3
"""Records what llama.cpp's tokenizer makes of many strings, as tests/golden/tokenizer_<model>.json.

usage: make_tokenizer_golden.py LLAMA_SOURCE LIBRARY_DIR VERSION MODEL.gguf OUT.json

LLAMA_SOURCE has include/llama.h, LIBRARY_DIR the built libllama; VERSION is written into the file.
The strings come from a seed and are the same on every run. Run once; the tests read the JSON.
"""
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile

SEED = 20240607
PROGRAM = r"""
#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>
#include "llama.h"
// Texts on stdin, each with a mode byte ('p' plain, 's' special tokens parsed) before it and a zero
// after it; a line of ids for each.
int main(int, char** argv) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  auto params = llama_model_default_params();
  params.vocab_only = true;
  llama_model* model = llama_model_load_from_file(argv[1], params);
  if (model == nullptr) return 1;
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const std::string in((std::istreambuf_iterator<char>(std::cin)), {});
  for (size_t at = 0; at < in.size();) {
    const size_t end = in.find('\0', at);
    const size_t size = end - at - 1;
    std::vector<llama_token> ids(size + 16);
    const int n = llama_tokenize(vocab, in.data() + at + 1, size, ids.data(), ids.size(), false,
                                 in[at] == 's');
    for (int i = 0; i < n; ++i) std::printf("%d ", ids[i]);
    std::printf("\n");
    at = end + 1;
  }
}
"""

ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIXYZ", "0123456789", "   \t\n\r",
    ".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+`~", "àéîöüßñçøåœÆ", "абвгдеЖЗИ", "αβγδεΩ",
    "中文字汉語日本語ひらがなカタカナ", "한국어조선말", "العربيةשלום", "हिन्दीবাংলাไทยภาษา",
    "😀🎉👩‍👩‍👧‍👦🏳️‍🌈❤️", "\u00a0\u2003\u3000\u200b\u2028\u0085", "½²③Ⅷ٣৪",
    "\u0300\u0301e\u0302", "\x01\x02\x07\x7f\x1b",
]
WORDS = """the of and to in is that it's they're I'll we've don't HELLO World iPhone camelCase
snake_case 123 1234567 3.14 1,000,000 http://example.com/a?b=c&d=e def for(int i=0;i<n;++i){ }
return x**2 <|im_start|> <|im_end|> <|endoftext|> </s> <s> <bos> <eos> <start_of_turn> <end_of_turn>
<unused5> <0x41> ▁ ▁▁ Ġthe naïve façade Straße Привет мир 你好 世界 こんにちは 안녕하세요 שלום مرحبا
नमस्ते 😀 <html> </div> <table> [multimodal] #include -> == != && || += // /* */ \\n""".split()
TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\n", " \n ", "Hello world",
    " Hello world",
    "Hello World!", " Hello, world! 🦙", "I'm sure we'VE said they'll DO it's",
    "The quick brown fox jumps over the lazy dog.",
    "for (int i = 0; i < 10; ++i) {\n\treturn i;\n}\n",
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return None\n",
    "1 12 123 1234 12345 123456 1234567 12345678", "3.14159265358979 -1e-10 0xDEADBEEF 1_000",
    "https://example.org/path?query=1&other=%20#frag", "user@example.com", "a" * 100, "=" * 64,
    " " * 33, "\n" * 40, "ab" * 50, "Ünïcödé Ťëxt", "e\u0301 vs é", "\ufeffBOM", "\u200d\u200d",
    "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<bos><bos>text<eos>",
    "C:\\Windows\\System32", "{\"key\": [1, 2.5, null, true], \"text\": \"caf\u00e9\"}",
    "| a | b |\n|---|---|\n| 1 | 2 |\n", "E = mc² ∑∫√∞≠≤≥ ∀x∈ℝ", "😀😃😄😁 👨‍👩‍👧‍👦 🇩🇪 🏴‍☠️",
    "Das ist ein Satz. Das ist noch einer! Und nun?", "Il était une fois à Noël…",
    "Съешь же ещё этих мягких французских булок", "我能吞下玻璃而不伤身体。", "私はガラスを食べられます。",
    "나는 유리를 먹을 수 있어요.", "أنا قادر على أكل الزجاج", "אני יכול לאכול זכוכית", "ฉันกินกระจกได้",
    "मैं काँच खा सकता हूँ", "\U0010ffff\U000e0001\ufffd\ufffe", "\u0085\u2028\u2029\u00a0",
]


def strings():
    rng = random.Random(SEED)
    out = list(TEXTS)
    while len(out) < 560:
        kind = rng.random()
        if kind < 0.3:
            text = "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(1, 40)))
        elif kind < 0.5:
            alphabet = rng.choice(ALPHABETS)
            text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))
        elif kind < 0.9:
            gaps = [" ", " ", "  ", "\n", "", "\t", " \n"]
            text = "".join(rng.choice(WORDS) + rng.choice(gaps) for _ in range(rng.randint(1, 12)))
        else:
            text = rng.choice(rng.choice(ALPHABETS)) * rng.randint(1, 70)
        out.append(text)
    return out


def main():
    source, libraries, version, model, out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "reference")
        with open(program + ".cpp", "w") as file:
            file.write(PROGRAM)
        subprocess.run(
            ["g++", "-O1", "-std=c++17", program + ".cpp", "-I", source + "/include", "-I",
             source + "/ggml/include", "-L", libraries, "-lllama", "-lggml", "-lggml-base",
             "-Wl,-rpath," + os.path.abspath(libraries), "-o", program], check=True)
        asked = [(text, mode) for text in strings() for mode in "ps"]
        stdin = b"".join(mode.encode() + text.encode() + b"\0" for text, mode in asked)
        lines = subprocess.run([program, model], input=stdin, check=True,
                               capture_output=True).stdout.decode().split("\n")[:-1]
    ids = [[int(i) for i in line.split()] for line in lines]
    assert len(ids) == len(asked)
    with open(model, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    cases = []
    for i in range(0, len(asked), 2):
        case = {"text": asked[i][0], "plain": ids[i]}
        if ids[i + 1] != ids[i]:
            case["special"] = ids[i + 1]  # with special tokens parsed, where that differs
        cases.append(case)
    head = {"program": "llama.cpp, llama_tokenize without BOS", "version": version, "seed": SEED,
            "model": os.path.basename(model), "model_bytes": os.path.getsize(model),
            "model_sha256": digest}
    with open(out, "w") as file:
        file.write(json.dumps(head)[:-1] + ', "cases": [\n')
        file.write(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases))
        file.write("\n]}\n")


main()
