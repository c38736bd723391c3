#!/usr/bin/env python3
"""tools/plot draws what eval and sweep print, where the numbers say, and refuses anything else."""
import json
import math
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path

from command import SOURCE, need_command, run

TINY = SOURCE / "tests/golden/tiny/llama_f32.gguf"
TEXT = SOURCE / "tests/golden/prompts/story.txt"
SVG = "{http://www.w3.org/2000/svg}"


def plot(*words):
    return subprocess.run([sys.executable, SOURCE / "tools/plot", *words], capture_output=True,
                          text=True, timeout=60, check=False)


def lines_of(svg):
    """{method: [(x, y) in pixels]}"""
    root = xml.fromstring(svg)
    return {group.find(f"{SVG}title").text:
            [tuple(map(float, point.split(",")))
             for point in group.find(f"{SVG}polyline").get("points").split()]
            for group in root.iter(f"{SVG}g")}


class Plot(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, rows):
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def test_points_are_means_over_texts_by_their_steps(self):
        def row(method, text, steps, read, kl):
            return {"method": method, "text": text, "steps": steps, "read": read, "kl_mean": kl}
        done = plot(self.write([row("a:select.share=0.1", "x", 10, 0.1, 0.4),
                                row("a:select.share=0.1", "y", 30, 0.1, 0.8),
                                row("a:select.share=0.1", "mean of 2", 40, 0.9, 9.0),
                                row("a:select.share=0.2", "x", 10, 0.2, 0.07),
                                row("b", "x", 10, 0.4, 0.007)]))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = lines_of(done.stdout)
        self.assertEqual(set(lines), {"a", "b"})
        (x1, y1), (x2, y2) = lines["a"]
        (x3, y3), = lines["b"]
        # Twice as much is as far on the axis, wherever; KL 0.7, 0.07 and 0.007 as well.
        self.assertAlmostEqual(x2 - x1, x3 - x2, delta=0.2)
        self.assertAlmostEqual(y2 - y1, y3 - y2, delta=0.2)
        self.assertGreater(y2, y1)  # less is lower on the page

    def test_labels_are_apart_and_on_the_page(self):
        rows = [{"method": f"m{i}", "text": "x", "steps": 1, "read": 0.1, "kl_mean": 1 + 1e-6 * i}
                for i in range(20)] + [{"method": "far", "text": "x", "steps": 1, "read": 0.1,
                                        "kl_mean": 100.0}]
        svg = plot(self.write(rows)).stdout
        heights = sorted(float(y) for y in re.findall(r'<text x="\d+" y="([\d.]+)" stroke', svg))
        self.assertEqual(len(heights), 21)
        for before, after in zip(heights, heights[1:]):
            self.assertGreaterEqual(after - before, 13.9)
        self.assertLessEqual(heights[-1], 480)

    def test_what_eval_and_sweep_print(self):
        need_command()
        kept = self.folder / "eval.jsonl"
        done = run("eval", "-m", TINY, "--text", TEXT, "--steps", 4, "--resume", kept, "--method",
                   "streaming:steady.recent=16/32:steady.seal=64,int8:steady.seal=64")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = lines_of(plot(kept).stdout)
        self.assertEqual({name: len(line) for name, line in lines.items()},
                         {"streaming": 2, "int8": 1})
        done = run("sweep", "-m", TINY, "-p", 8, "-n", 4, "-d", "16,32,64", "-r", 1, "--method",
                   "exact,sketch", "--parallel", "1,2", "-o", "jsonl")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.folder / "sweep.jsonl"
        rows.write_bytes(done.stdout)
        lines = lines_of(plot(rows).stdout)
        self.assertEqual(set(lines), {"exact", "sketch", "exact x 2", "sketch x 2"})
        for line in lines.values():
            xs = [x for x, _ in line]
            self.assertAlmostEqual(xs[1] - xs[0], xs[2] - xs[1], delta=0.2)
        only = lines_of(plot(rows, "--only", "sketch").stdout)
        self.assertEqual(set(only), {"sketch", "sketch x 2"})
        both = plot(kept, rows)
        self.assertEqual((both.returncode, both.stdout), (1, ""))
        self.assertIn("a picture has rows of one kind", both.stderr)

    def test_what_a_selector_misses_is_drawn_by_its_settings(self):
        def row(method, kib, recall):
            return {"method": method, "bytes": 1024 * kib, "recall": recall}
        lines = lines_of(plot(self.write([row("a", 10, 0.9), row("a", 100, 0.99), row("a", 1000, 1),
                                          row("a:select.bits=1", 100, 0.9),
                                          row("b:select.rows=0", 10, 0.5)])).stdout)
        self.assertEqual(set(lines), {"a", "a:select.bits=1", "b"})
        (x1, y1), (x2, y2) = lines["a"]  # nothing missed has no place on a logarithmic axis
        (x3, y3), = lines["a:select.bits=1"]
        self.assertEqual((x2, y1), (x3, y3))
        self.assertLess(x1, x2)
        self.assertGreater(y2, y1)

    def test_refusals_are_one_line(self):
        def refused(text, said):
            path = self.folder / "bad.jsonl"
            path.write_bytes(text)
            done = plot(path)
            self.assertEqual((done.returncode, done.stdout), (1, ""), text)
            self.assertRegex(done.stderr, rf"^plot: .*{said}.*\n$")
        refused(b"", "no rows")
        refused(b"\n{\n", "line 2 is no row")
        refused(b"[1]\n", "line 1 is no row")
        refused(b'{"method": 3}\n', "line 1 is no row")
        refused(b"\xff\xfe", "not a text")
        refused(b'{"method": "a", "kl_mean": 1, "steps": 1}\n', "no number read")
        refused(b'{"method": "a", "kl_mean": NaN, "steps": 1, "read": 1}\n', "no number kl_mean")
        refused(b'{"method": "a", "kl_mean": 0, "steps": 1, "read": 1}\n', "takes numbers above 0")
        refused(b'{"method": "a", "kl_mean": 1, "steps": 0, "read": 1}\n', "no steps")
        refused(b'{"method": "a", "score": 1}\n', "rows of one kind")
        for kind, key in (("recall", "keys"), ("kl_mean", "model"), ("test", "model")):
            refused(b"".join(json.dumps({"method": "a", kind: "1", key: value}).encode() + b"\n"
                             for value in ("x", "y")), rf"rows differ in {key} \(x, y\)")
        done = plot(self.folder / "missing")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^plot: .*missing: No such file or directory\n$")
        self.assertEqual(plot().returncode, 2)

    def test_names_are_escaped(self):
        done = plot(self.write([{"method": "<a&b>", "text": "x", "steps": 1, "read": 0.5,
                                 "kl_mean": math.exp(-3)}]))
        self.assertEqual(set(lines_of(done.stdout)), {"<a&b>"})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
