#!/usr/bin/env python3
"""A second reader of session files, made of docs/session_format.md alone: what the command has just
written is as the page says, every field and every checksum of it."""
import math
import ctypes
import ctypes.util
import pathlib
import struct
import tempfile
import unittest

from command import SOURCE, need_command, run, skip

PAGE = 4096
GOLDEN_RATIO = 0x9E3779B97F4A7C15
F16, INT8, Q8_0, Q4_1 = 0, 1, 5, 7
GROUP = {Q8_0: 34, Q4_1: 20}  # bytes of 32 channels
try:
    XXHASH = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
except OSError as missing:
    skip(f"no libxxhash: {missing}")
XXHASH.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
XXHASH.XXH3_64bits_withSeed.restype = ctypes.c_uint64


def checksum(content, seed):
    return XXHASH.XXH3_64bits_withSeed(content, len(content), seed % 2**64)


class Fields:
    """Values one after the other, nothing between them."""
    def __init__(self, content):
        self.content, self.at = content, 0

    def values(self, kinds):
        found = struct.unpack_from("<" + kinds, self.content, self.at)
        self.at += struct.calcsize("<" + kinds)
        return found

    def value(self, kind):
        return self.values(kind)[0]

    def list(self, kind):  # pylint: disable=redefined-builtin
        return self.values(f"{self.value('Q')}{kind}")

    def text(self):
        count = self.value("Q")
        self.at += count
        return self.content[self.at - count:self.at].decode()

    def rest_is_zero(self):
        return len(self.content) - self.at < PAGE and not self.content[self.at:].strip(b"\0")


def read_header(page):
    header = Fields(page)
    magic, version, page_bytes, *record = header.values("8sII4Q")
    sound = header.value("Q") == checksum(page[:header.at - 8], 0)
    if not sound or (magic, version, page_bytes) != (b"TLSESS\x1a\n", 2, PAGE):
        return None
    assert header.rest_is_zero()
    return record  # generation, offset, bytes, checksum


def read_manifest(content):
    m, said = Fields(content), {}
    said["facts"] = {m.text(): m.text() for _ in range(m.value("I"))}
    said["method"], said["overrides"] = m.text(), [m.text() for _ in range(m.value("I"))]
    said["tokens"], said["logits"] = m.list("i"), m.list("f")
    said["seed"], said["sampler"], said["note"] = m.value("Q"), m.text(), m.text()
    said["length"] = m.value("I")
    said["layers"] = []
    for _ in range(m.value("I")):
        layer = {"tail_first": m.value("I"), "sinks": m.list("B"), "tail": m.list("B")}
        layer["records"] = [m.values("QQQQ") for _ in range(m.value("Q"))]
        said["layers"].append(layer)
    assert m.at == len(content)
    return said


class SessionFormat(unittest.TestCase):
    def read_segment(self, file, record_content, layer, extents):
        """Rows and first position of a segment, all of whose pages were compared."""
        r = Fields(record_content)
        in_layer, heads, rows, first = r.values("4I")
        formats, sizes, (at, size, epoch) = r.values("2I"), r.values("2I"), r.values("3Q")
        sums, offsets, more = r.list("Q"), r.list("H"), r.list("B")
        self.assertTrue(r.rest_is_zero())
        self.assertEqual(in_layer, layer)
        head_bytes = -(-rows * sum(sizes) // PAGE) * PAGE
        self.assertEqual((size, len(sums)), (heads * head_bytes, size // PAGE))
        self.assertIn((at, size), extents)
        for page, due in enumerate(sums):
            seed = epoch * GOLDEN_RATIO + at // PAGE + page
            self.assertEqual(
                checksum(file[at + page * PAGE:at + (page + 1) * PAGE], seed), due)
        for head in range(heads):
            used = at + head * head_bytes + rows * sum(sizes)
            self.assertFalse(file[used:at + (head + 1) * head_bytes].strip(b"\0"))
            if offsets:
                self.assertEqual(sorted(offsets[head * rows:(head + 1) * rows]), [*range(rows)])
        self.formats.add(formats)
        if formats == (F16, F16):
            self.dims = [size // 2 for size in sizes]
        for form, size in zip(formats, sizes):
            self.assertEqual(size % GROUP.get(form, 2), 0)
        self.more_bytes += len(more)
        if more:
            self.assertEqual(len(more), self.sketch_bytes(heads, rows, self.dims, self.kept))
        return rows, first

    @staticmethod
    def sketch_bytes(heads, rows, dims, kept):
        cluster, bits, value_bits = kept
        key_dim, value_dim = dims
        clusters, sixteens = -(-rows // cluster), -(-rows // 16)
        means = clusters + min(round(math.sqrt(clusters)), rows - clusters)
        index = sixteens * 16 * key_dim * bits // 8 + sixteens * 16 * 2  # codes or keys, scales
        index += means * (key_dim + 4) + means * 4 + (means + 2) * 2
        coded = rows * (value_dim * value_bits // 8 + 2) if value_bits else 0
        return heads * (means * (value_dim // 2 + 2) + coded + -(-index // 64) * 64)

    def read(self, file):
        headers = [header for header in map(read_header, (file[:PAGE], file[PAGE:2 * PAGE]))
                   if header]
        generation, at, size, due = max(headers)
        self.assertEqual(checksum(file[at:at + size], generation), due)
        record = Fields(file[at:at + size])
        extents = [record.values("QQ") for _ in range(record.value("Q"))]
        self.assertEqual(extents, sorted(extents))
        manifest = read_manifest(bytes(record.list("B")))
        self.assertTrue(record.rest_is_zero())
        referred = []
        for l, layer in enumerate(manifest["layers"]):
            position = 4
            for at, size, due, due_rows in layer["records"]:
                self.assertEqual(checksum(file[at:at + size], at), due)
                rows, first = self.read_segment(file, file[at:at + size], l, extents)
                self.assertEqual(rows, due_rows)
                self.assertEqual(first, position)
                position += rows
                referred.append((at, size))
            self.assertEqual(position, layer["tail_first"])
            rows = manifest["length"] - position
            self.assertEqual(len(layer["tail"]) * 4, len(layer["sinks"]) * rows)
        self.assertEqual(len(extents), 2 * len(referred))
        self.assertTrue(set(referred) <= set(extents))
        return manifest

    def test_what_the_command_writes(self):
        model = SOURCE / "tests/golden/tiny/llama_f32.gguf"
        for words, formats, self.kept in (
                (["exact"], (F16, F16), None),
                (["exact", "-ctk", "q8_0", "-ctv", "q4_1"], (Q8_0, Q4_1), None),
                (["sketch", "--method-set", "values.compress=int8"], (F16, INT8), (16, 2, 0)),
                (["oracle_estimate"], (F16, F16), (16, 16, 0)),
                (["ladder4"], (Q8_0, Q8_0), (24, 4, 4))):  # exact is first: it says the head sizes
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "s.tls"
                for _ in range(2):  # the second from a header of the other page
                    done = run("generate", "-m", model, *(["-p", "once upon a time there was"]
                               if not path.exists() else []), "-n", "110", "-c", "250",
                               "--ignore-eos", "--temp", "0", "--session", path, "--method",
                               *words, "--method-set", "steady.seal=64")
                    self.assertEqual(done.returncode, 0, done.stderr)
                self.formats, self.more_bytes = set(), 0
                manifest = self.read(path.read_bytes())
                self.assertEqual(self.formats, {formats})
                self.assertEqual(self.more_bytes > 0, words[0] != "exact")
                self.assertEqual(manifest["method"], words[0])
                self.assertGreaterEqual(set(manifest["facts"]),
                                        {"model", "tokenizer", "layers", "rotation", "method"})
                self.assertGreater(len(manifest["tokens"]), 220)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=["session_format_test.py"], verbosity=2)
