#!/usr/bin/env python3
"""thermocline eval with a tiny model: what is measured, kept, dumped and refused."""
import ast
import csv
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

from command import COMMAND, SOURCE, need_command, run

TINY = SOURCE / "tests/golden/tiny/llama_mixed.gguf"
NUMBERS = {"<f2": "<e", "<f4": "<f", "<u4": "<I", "<u8": "<Q"}


def npy(path):
    """(type, shape) and numbers of an array in a file, by the format's own description."""
    with open(path, "rb") as file:
        content = file.read()
    assert content[:8] == b"\x93NUMPY\x01\x00"
    begin = 10 + int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10:begin].decode())
    numbers = struct.iter_unpack(NUMBERS[header["descr"]], content[begin:])
    return (header["descr"], header["shape"]), [number for number, in numbers]


class Eval(unittest.TestCase):
    def refused(self, words, *parts, code=2):
        done = run(*words)
        self.assertEqual(done.returncode, code, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr.decode())

    def test_measures_depths_and_settings_in_one_run(self):
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--steps", "8", "-d",
                 "300,200,0", "-c", "512", "-o", "jsonl", "--method",
                 "exact,int8:steady.seal=64,sketch:select.share=0.05/0.2"]
        rows = []
        for more in ([], ["--own-prefill"]):
            done = run(*words, *more)
            self.assertEqual(done.returncode, 0, done.stderr)
            rows.append([json.loads(line) for line in done.stdout.splitlines()])
        methods = ["exact", "int8:steady.seal=64", "sketch:select.share=0.05",
                   "sketch:select.share=0.2"]
        self.assertEqual([(row["depth"], row["method"]) for row in rows[0]],
                         [(depth, method) for depth in (200, 300, 504) for method in methods])
        for taken, read in zip(*rows):
            # What full attention has read is to the bit what the method would have read.
            self.assertEqual(taken["kl_steps"], read["kl_steps"])
            self.assertLessEqual(taken["kl_low"], taken["kl_mean"])
            self.assertLessEqual(taken["kl_mean"], taken["kl_high"])
            self.assertEqual(len(taken["kl_steps"]), 8)
        exact, int8 = rows[0][8], rows[0][9]
        self.assertEqual((exact["read"], exact["kl_max"], exact["ppl"]),
                         (1, 0, exact["ppl_full"]))
        self.assertGreater(int8["kl_mean"], 0)
        self.assertLess(int8["read"], 1)

    def test_says_the_mean_of_texts_and_refuses_what_is_too_short(self):
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--text", SOURCE / "README.md",
                 "--steps", "4", "-d", "100"]
        done = run(*words, "--method", "int8", "-o", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        one, other, mean = json.loads(done.stdout)
        self.assertEqual(mean["text"], "mean of 2")
        self.assertAlmostEqual(mean["kl_mean"], (one["kl_mean"] + other["kl_mean"]) / 2)
        self.assertEqual(mean["kl_steps"], one["kl_steps"] + other["kl_steps"])
        self.refused([*words, "-d", "100000000"], "--depth", "more than once", code=2)
        self.refused([*words[:-1], "100000000"], "100000005 are needed", code=1)
        self.refused([*words, "--method", "exact,exact"], "exact twice")

    def test_a_method_that_watches_a_prefill_reads_the_text_itself(self):
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--steps", "4", "-d", "700",
                 "-c", "1500", "-o", "json"]
        for method in ("think", "allot2", "snapkv"):
            rows = []
            for more in ([], ["--own-prefill"]):
                done = run(*words, "--method", method, *more)
                self.assertEqual(done.returncode, 0, done.stderr)
                rows.append(json.loads(done.stdout)[0])
            self.assertEqual(rows[0]["kl_steps"], rows[1]["kl_steps"], method)
            self.assertGreater(rows[0]["kl_max"], 0, method)

    def test_says_the_mean_of_what_all_texts_have(self):
        with tempfile.TemporaryDirectory() as folder:
            short = os.path.join(folder, "short.txt")
            with open(short, "w", encoding="utf-8") as file:
                file.write("Once upon a time there was a king who had a mill and a cat.\n")
            words = ["eval", "-m", TINY, "-c", "1500", "--steps", "2", "-o", "json"]
            # What is too short to be sealed has no ranks.
            for texts in ((SOURCE / "LICENSE", short), (short, SOURCE / "LICENSE")):
                done = run(*words, *(word for text in texts for word in ("--text", text)),
                           "--method", "shadowkv")
                self.assertEqual(done.returncode, 0, done.stderr)
                one, other, mean = json.loads(done.stdout)
                self.assertIn("keys_rank_by_layer", {**one, **other})
                for column in ("captured", "keys_rank_by_layer"):
                    self.assertNotIn(column, mean)
                self.assertAlmostEqual(mean["kl_mean"], (one["kl_mean"] + other["kl_mean"]) / 2)
                self.assertEqual(mean["kl_max"], max(one["kl_max"], other["kl_max"]))
            # A step that is watched has no speed; what was watched is another measurement.
            kept = ["--resume", os.path.join(folder, "rows.jsonl")]
            license, readme = ["--text", SOURCE / "LICENSE"], ["--text", SOURCE / "README.md"]
            words += ["-d", "200"]
            dumped = run(*words, *kept, *license, "--dump", os.path.join(folder, "dump"))
            self.assertEqual(dumped.returncode, 0, dumped.stderr)
            self.assertIsNone(json.loads(dumped.stdout)[0]["tokens_per_s"])
            done = run(*words, *kept, *license, *readme)
            self.assertEqual(done.returncode, 0, done.stderr)
            for row in json.loads(done.stdout):
                self.assertGreater(row["tokens_per_s"], 0)
            done = run(*words, *license, *readme, "--mass")
            self.assertEqual(done.returncode, 0, done.stderr)
            one, other, mean = json.loads(done.stdout)
            self.assertNotIn("tokens_per_s", mean)
            self.assertAlmostEqual(mean["mass"], (one["mass"] + other["mass"]) / 2)

    def test_csv_has_a_cell_a_column_and_md_straight_bars(self):
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--text",
                 SOURCE / "tests/unit/tools/command_line_test.py", "-c", "1400", "-d", "1200"]
        for more, columns in (
                (["--steps", "2", "--method", "sketch,shadowkv", "--mass"], ["captured", "mass"]),
                (["--steps", "2", "--method", "shadowkv,sketch"], ["captured"]),
                (["--free", "4"], ["depth", "same_q1", "ppl_high"]),
                (["--tasks", "needle,variable-tracking", "--samples", "1"], ["score"])):
            done = run(*words, *more, "-o", "csv")
            self.assertEqual(done.returncode, 0, done.stderr)
            titles, *rows = list(csv.reader(done.stdout.decode().splitlines()))
            self.assertGreater(len(rows), 1)
            for row in rows:
                self.assertEqual(len(row), len(titles), row)
            for column in columns:
                self.assertEqual(titles.count(column), 1, titles)
            lists = ("_by_layer", "kl_steps", "written", "answers")
            self.assertEqual([title for title in titles if title.endswith(lists)], [])
            if "captured" in columns:
                at, method = titles.index("captured"), titles.index("method")
                for row in rows:
                    self.assertEqual(row[at] == "", row[method] == "sketch", row)
            lines = run(*words, *more).stdout.decode().splitlines()
            self.assertEqual(len(lines), len(rows) + 2)
            self.assertEqual(len({len(line) for line in lines}), 1, lines)

    def test_refuses_kept_rows_that_are_none(self):
        with tempfile.TemporaryDirectory() as folder:
            rows = os.path.join(folder, "rows.jsonl")
            words = ["eval", "-m", TINY, "--text", SOURCE / "README.md", "-c", "1400", "-d",
                     "1200", "--resume", rows]
            for more, columns in ((["--steps", "2"], ["kl_mean", "kl_steps", "nll_full"]),
                                  (["--free", "4"], ["same", "written", "method"]),
                                  (["--tasks", "needle", "--samples", "1"], ["score"])):
                self.assertEqual(run(*words, *more).returncode, 0)
                with open(rows, encoding="utf-8") as file:
                    kept = [json.loads(line) for line in file]
                for column in columns:
                    for row in ({**kept[0], column: {"a": 1}},
                                {name: kept[0][name] for name in kept[0] if name != column}):
                        with open(rows, "w", encoding="utf-8") as file:
                            for line in kept[1:] + [row]:
                                file.write(json.dumps(line) + "\n")
                        self.refused([*words, *more], f"line {len(kept)} is no row", code=1)
                os.remove(rows)

    def test_goes_on_where_a_run_was_stopped(self):
        with tempfile.TemporaryDirectory() as folder:
            rows = os.path.join(folder, "rows.jsonl")
            words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--steps", "4", "-d",
                     "200,300", "-c", "512", "-o", "jsonl", "--progress", "json", "--resume", rows]
            first = run(*words, "--method", "sketch")
            self.assertEqual(first.returncode, 0, first.stderr)
            # Another method reads again, and what was measured does not change, nor its times.
            second = run(*words, "--method", "sketch,exact")
            self.assertIn(b"prompt_progress", second.stderr)
            again = run(*words, "--method", "sketch,exact")
            self.assertNotIn(b"prompt_progress", again.stderr)
            self.assertEqual(second.stdout, again.stdout)
            lines = [json.loads(line) for line in again.stdout.splitlines()]
            self.assertEqual(lines[::2], [json.loads(line) for line in first.stdout.splitlines()])
            self.assertNotIn(b"of commit", again.stderr)
            with open(rows, encoding="utf-8") as file:
                text = file.read()
            for other in ('"commit":"older"', '"commit":7'):
                with open(rows, "w", encoding="utf-8") as file:
                    file.write(re.sub(r'"commit":"[^"]*"', other, text))
                said = run(*words, "--method", "sketch,exact").stderr.decode()
                self.assertEqual(said.count("has rows of commit " + other[9:]), 1, said)
            with open(rows, "w", encoding="utf-8") as file:
                file.write(text)
            # Anything else is another measurement.
            for more in (["--steps", "5"], ["--mass"], ["--method", "sketch:select.share=0.1"],
                         ["--text", SOURCE / "README.md"], ["-t", "1"], ["--isa", "scalar"],
                         ["--kv-host", "256MiB"], ["--kv-disk", "64MiB", "--kv-dir", folder],
                         ["--kv-disk", "64MiB", "--kv-dir", folder, "--io-backend", "threads"],
                         ["--device", "host", "--kv-device", "64MiB"]):
                other = [word for word in words]
                if more[0] == "--steps":
                    other[other.index("--steps"):other.index("--steps") + 2] = []
                done = run(*other, *more)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(b"prompt_progress", done.stderr, more)
            self.refused([*words, "--resume", rows], "more than once")
            with open(rows, "w", encoding="utf-8") as file:
                file.write("something else\n")
            self.refused(words, "line 1 is no row", code=1)

    def test_says_what_mass_the_rows_cover(self):
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--steps", "4", "-d", "400",
                 "-c", "512", "--mass", "-o", "json", "--method",
                 "exact,streaming:steady.recent=32:steady.seal=64,sketch:select.share=0.2"]
        done = run(*words)
        self.assertEqual(done.returncode, 0, done.stderr)
        exact, streaming, sketch = json.loads(done.stdout)
        self.assertAlmostEqual(exact["mass"], 1, 6)
        self.assertAlmostEqual(exact["mass_lowest"], 1, 6)
        for row in (streaming, sketch):
            self.assertEqual(row["mass_lowest"], min(row["mass_by_layer"]))
            self.assertEqual(row["mass_by_layer"][row["lowest_layer"]], row["mass_lowest"])
            self.assertIsNone(row["tokens_per_s"])
        self.assertLess(streaming["mass"], sketch["mass"])
        self.assertLess(sketch["mass"], 1)

    def test_dumps_what_numpy_reads(self):
        with tempfile.TemporaryDirectory() as folder:
            place = os.path.join(folder, "dump")
            words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--steps", "4", "-d", "300",
                     "-c", "512", "-o", "json", "--method",
                     "exact,sketch:select.share=0.2,ladder2:select.coded=0.5", "--dump", place]
            done = run(*words)
            self.assertEqual(done.returncode, 0, done.stderr)
            passage = os.path.join(place, "LICENSE-300")
            self.assertEqual(sorted(os.listdir(passage)),
                             ["exact", "keys", "ladder2_select.coded=0.5",
                              "sketch_select.share=0.2"])
            with open(os.path.join(passage, "exact", "about.json"), encoding="utf-8") as file:
                about = json.load(file)
            layer = about["layers"][0]
            self.assertEqual(len(about["tokens"]), 305)
            keys = npy(os.path.join(passage, "keys", "keys_00.npy"))
            self.assertEqual(keys[0], ("<f2", (layer["kv_heads"], 304, layer["key_dim"])))
            queries = npy(os.path.join(passage, "exact", "queries_00.npy"))
            self.assertEqual(queries[0], ("<f4", (4, layer["query_heads"], layer["key_dim"])))
            (kind, shape), ends = npy(os.path.join(passage, "exact", "ends_00.npy"))
            self.assertEqual((kind, shape), ("<u8", (4, layer["kv_heads"])))
            (kind, shape), read = npy(os.path.join(passage, "exact", "positions_00.npy"))
            self.assertEqual((kind, shape), ("<u4", (ends[-1],)))
            self.assertEqual(list(read[:ends[0]]), list(range(301)))
            less = npy(os.path.join(passage, "sketch_select.share=0.2", "positions_00.npy"))
            self.assertLess(len(less[1]), len(read))
            ladder = os.path.join(passage, "ladder2_select.coded=0.5")
            (_, shape), ends = npy(os.path.join(ladder, "coded_ends_00.npy"))
            self.assertEqual(shape, (4, layer["kv_heads"]))
            coded = npy(os.path.join(ladder, "coded_00.npy"))[1]
            self.assertEqual(len(coded), ends[-1])
            rows = npy(os.path.join(ladder, "positions_00.npy"))[1]
            until = npy(os.path.join(ladder, "ends_00.npy"))[1][0]
            self.assertEqual(set(coded[:ends[0]]) & set(rows[:until]), set())
            self.assertGreater(ends[0], 0)
            self.assertFalse(os.path.exists(os.path.join(passage, "exact", "coded_00.npy")))
            everything, some = self.replay(os.path.join(passage, "exact")), self.replay(ladder)
            for name, share in (("read", 1), ("coded", 0), ("mass", 1), ("best", 1)):
                self.assertAlmostEqual(everything[name], share, 4)
            # All that a step reads the one before read, but its own row; and so it is of any cache.
            self.assertAlmostEqual(everything["again"], 301 / 302 / 3 + 302 / 303 / 3 + 1 / 3, 2)
            self.assertAlmostEqual(everything["missed, 4 steps"], 1 - everything["again"], 4)
            for name in ("read", "coded", "again", "mass"):
                self.assertTrue(0 < some[name] < 1, f"{name}: {some[name]}")
            self.assertLess(some["mass"], some["best"])
            self.assertLessEqual(some["missed, 2 steps"], 1 - some["again"] + 1e-4)
            self.refused(words, "not empty: name a new folder")
            self.refused([*words[:-1], SOURCE / "LICENSE"], "cannot be written to", code=1)
            self.refused([*words[:-1], "/proc/dump"], "--dump /proc/dump cannot be written to",
                         code=1)
            full = os.path.join(folder, "full")
            limited = subprocess.run(
                [COMMAND, *map(str, words[:-1]), full], capture_output=True, check=False,
                preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
                                    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))))
            self.assertEqual(limited.returncode, 1)
            self.assertIn(b".npy could not be written: File too large", limited.stderr)
            self.assertEqual([files for _, _, files in os.walk(full) if files], [])

    def replay(self, folder):
        done = subprocess.run([sys.executable, SOURCE / "tests/bench/dump_replay.py", folder],
                              capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        names, *_, last = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
        self.assertEqual(last[0], "all")
        return dict(zip(names[1:], map(float, last[1:])))

    def build(self, path, *more):
        done = run("session", "build", "-m", TINY, "--session", path, "--text", SOURCE / "LICENSE",
                   "--quiet", *more)
        self.assertEqual(done.returncode, 0, done.stderr)

    def what_it_holds(self, path):
        session, = json.loads(run("session", "show", path, "--json", "-").stdout)["sessions"]
        del session["saved_at"]  # when the file was last written to
        return session

    def test_measures_the_end_of_a_session(self):
        with tempfile.TemporaryDirectory() as folder:
            one, raw = os.path.join(folder, "one.tls"), os.path.join(folder, "raw.tls")
            self.build(one, "--tokens", "209", "--chunk", "209")
            self.build(raw, "--tokens", "1500", "--chunk", "250")
            shown = self.what_it_holds(raw)
            words = ["eval", "-m", TINY, "--steps", "8", "-o", "jsonl", "--progress", "json"]
            methods = ["--method", "exact,int8:steady.seal=64,sketch:select.share=0.05"]
            # A text that was read at once is what the same text is without a session.
            done = run(*words, *methods, "--session", one)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotIn(b'"total":200', done.stderr)  # nothing is read
            held = [json.loads(line) for line in done.stdout.splitlines()]
            done = run(*words, *methods, "--text", SOURCE / "LICENSE", "-d", "200", "-c", "512")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(b'"total":200', done.stderr)
            read = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertEqual([row["kl_steps"] for row in held], [row["kl_steps"] for row in read])
            self.assertEqual([(row["text"], row["depth"]) for row in held], [("one.tls", 200)] * 3)
            # Joined texts, longer than the model's context, twice: the session stays as it was.
            for _ in range(2):
                done = run(*words, *methods, "--session", raw)
                self.assertEqual(done.returncode, 0, done.stderr)
                exact, int8, sketch = [json.loads(line) for line in done.stdout.splitlines()]
                self.assertEqual((exact["depth"], exact["kl_max"], exact["read"]), (1491, 0, 1))
                self.assertGreater(int8["kl_mean"], 0)
                self.assertLess(sketch["rows_read"], 0.5)
                self.assertEqual(self.what_it_holds(raw), shown)
            self.assertEqual(run("session", "verify", raw).returncode, 0)
            self.refused([*words, "--session", raw, "--text", "x"], "the text that it holds")
            for more in (["-d", "100"], ["--own-prefill"], ["--tasks", "needle"]):
                self.refused([*words[:3], "--session", raw, *more], "is for --text")
            for method in ("snapkv", "think"):  # before sketch is measured
                self.refused([*words, "--session", raw, "--method", f"sketch,{method}"],
                             f"method {method}", "with --text", code=1)
            self.refused([*words, "--session", folder + "/none"], "--session", "none", code=1)
            for more in (["--steps", "5000"], ["--free", "5000"]):
                done = run("eval", "-m", TINY, "--session", raw, *more)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertNotIn(b"--depth", done.stderr)
            done = run("eval", "-m", TINY.parent / "llama_f32.gguf", "--session", raw)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(b"it was made by another model", done.stderr)
            self.assertNotIn(b"session rm", done.stderr)
            sketch = os.path.join(folder, "sketch.tls")
            self.build(sketch, "--tokens", "200", "--chunk", "200", "--method", "sketch")
            self.refused([*words, "--session", sketch], "was made with sketch", "--method exact",
                         code=1)

    def test_writes_freely(self):
        with tempfile.TemporaryDirectory() as folder:
            words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "-d", "200,300", "-c", "512",
                     "-o", "jsonl", "--free", "24", "--method",
                     "exact,streaming:steady.recent=16:steady.seal=64", "--progress", "json",
                     "--resume", os.path.join(folder, "rows.jsonl")]
            done = run(*words)
            self.assertEqual(done.returncode, 0, done.stderr)
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            writers = ["full attention, seed 1", "full attention, seed 2", "exact",
                       "streaming:steady.recent=16:steady.seal=64"]
            places = [("LICENSE", 200), ("LICENSE", 300), ("all 2", None)]
            self.assertEqual([(row["text"], row.get("depth"), row["method"]) for row in rows],
                             [(*place, writer) for place in places for writer in writers])
            for first in (0, 4):
                full, second, exact, streaming = rows[first:first + 4]
                for row in (full, second, exact, streaming):
                    pairs = list(zip(row["written"], full["written"])) + [(0, 1)]
                    self.assertEqual(row["same"], [a == b for a, b in pairs].index(False))
                    self.assertEqual(len(row["written"]), 24)
                self.assertEqual((full["same"], exact["same"]), (24, 24))
                self.assertEqual((full["ppl_full"], full["kl_mean"]), (exact["ppl_full"], 0))
                self.assertLess(second["same"], 24)
                self.assertGreater(streaming["kl_mean"], 0)
                # As likely as full attention says, token for token, of its own text.
                self.assertGreater(full["ppl_full"], 1)
            for number, row in enumerate(rows[8:]):
                same = sorted((rows[number]["same"], rows[number + 4]["same"]))
                self.assertEqual([row["same_q1"], row["same"], row["same_q3"]],
                                 [same[0], same[0], same[1]])
                self.assertLessEqual(row["ppl_low"], row["ppl_full"])
            again = run(*words)
            self.assertEqual(again.stdout, done.stdout)
            self.assertNotIn(b"prompt_progress", again.stderr)
            # The likeliest tokens need no seed; another temperature is another measurement.
            done = run(*words, "--temp", "0")
            rows = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertEqual((rows[1]["same"], rows[0]["written"]), (24, rows[1]["written"]))
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE"]
        self.refused([*words, "--free", "0"], "--free must be between 1")
        self.refused([*words, "--temp", "1"], "--temp goes with --free")
        for temperature in ("nan", "-1", "inf"):
            self.refused([*words, "--free", "9", f"--temp={temperature}"], "between 0 and 1000")
        for name in ("--tasks", "--session", "--dump", "--resume"):
            self.refused([*words, name, ""], f"{name} '' names nothing")
        self.refused([*words, "--free", "9", "--mass"], "--free writes them")
        self.refused([*words, "--free", "9", "--tasks", "needle"], "one at a time")
        self.refused([*words, "--free", "300", "-d", "300", "-c", "512"],
                     "takes 600 positions, and the context has 512", code=1)

    def test_scores_tasks(self):
        with tempfile.TemporaryDirectory() as folder:
            rows = os.path.join(folder, "rows.jsonl")
            words = ["eval", "-m", TINY, "--text", SOURCE / "README.md", "--tasks",
                     "needle,key-value", "--samples", "3", "-d", "1200", "-c", "1400", "-o",
                     "jsonl", "--resume", rows]
            done = run(*words)
            self.assertEqual(done.returncode, 0, done.stderr)
            # The tiny model knows nothing, and that is said.
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertEqual([(line["task"], line["method"]) for line in lines],
                             [("needle", "full attention"), ("key-value", "full attention")])
            for line in lines:
                self.assertEqual((line["n"], line["score"], line["read"]), (3, 0, 1))
                self.assertEqual(len(line["answers"]), 3)
                self.assertGreater(line["score_high"], 0.5)
            self.assertIn("under 60 %: no method is scored", done.stderr.decode())
            again = run(*words, "--progress", "json")
            self.assertEqual(again.stdout, done.stdout)
            self.assertNotIn(b"prompt_progress", again.stderr)
        self.refused([*words, "--mass"], "--mass is for measuring on texts")
        self.refused(["eval", "-m", TINY, "--text", "x", "--samples", "3"], "goes with --tasks")
        for words, said in ((["--tasks", "neddle"], "did you mean 'needle'"),
                            (["--tasks", "needle", "--needle-depth", "2"], "from 0 to 1")):
            self.refused(["eval", "-m", TINY, "--text", SOURCE / "LICENSE", *words], said)
        words = ["eval", "-m", TINY, "--text", SOURCE / "LICENSE", "--tasks", "needle", "-c", "900"]
        self.refused(words, "say at which --depth")
        self.refused([*words, "-d", "20"], "leaves no room for a text", code=1)
        self.refused([*words, "-d", "899"], "the context has 900", code=1)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
