#!/usr/bin/env python3
"""The command as a user meets it before there is a model: help, wrong words, exit codes."""
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from command import COMMAND, SOURCE, need_command, run

TINY = SOURCE / "tests/golden/tiny/llama_mixed.gguf"
COMMANDS = ["generate", "chat", "inspect", "sweep", "eval", "methods"]


class CommandLine(unittest.TestCase):
    def refused(self, words, *said, code=2):
        done = run(*words)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, b"")
        for text in said:
            self.assertIn(text, done.stderr.decode())

    def test_help_goes_to_stdout(self):
        top = run("--help")
        self.assertEqual(top.returncode, 0)
        for name in COMMANDS:
            self.assertIn(name, top.stdout.decode())
            done = run(name, "--help")
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertIn(f"usage: thermocline {name}", done.stdout.decode())
            self.assertEqual(done.stdout, run("help", name).stdout)
            self.assertLessEqual(max(map(len, done.stdout.decode().splitlines())), 100)

    def test_version(self):
        done = run("--version")
        self.assertEqual(done.returncode, 0)
        for word in ("thermocline", "instruction sets", "CUDA", "machine: "):
            self.assertIn(word, done.stdout.decode())

    def test_no_command_is_a_usage_error(self):
        self.refused([], "usage:")
        self.refused(["generat"], "did you mean 'generate'?")
        self.refused(["-m", "model.gguf"], "a command comes first")

    def test_wrong_options_are_named(self):
        self.refused(["generate", "--temprature", "1"], "--temprature", "did you mean '--temp'?")
        self.refused(["sweep", "--bananas"], "--bananas")
        self.refused(["generate", "-m", "m", "-p", "x", "-n", "many"], "many")
        self.refused(["generate", "-m", "m", "-p", "x", "stray"], "stray")
        self.refused(["generate", "-m"], "model")

    def test_missing_parts_are_named(self):
        self.refused(["generate", "-p", "x"], "-m")
        self.refused(["generate", "-m", "m"], "-p", "-f")
        self.refused(["eval", "-m", "m"], "--text")
        self.refused(["inspect"], "-m")

    def test_values_are_checked(self):
        base = ["generate", "-m", "m", "-p", "x"]
        for words, said in [
                (["--kv-host", "3X"], "--kv-host"), (["--kv-disk", "lots"], "--kv-disk"),
                (["--kv-device", "1G"], "--device host"), (["--device", "host"], "--kv-device"),
                (["--device", "gpu", "--kv-device", "1G"], "known: none, host, cuda, cuda:N"),
                (["--device", "cuda"], "--kv-device SIZE"),
                 (["-ngl", "most"], "number of layers"), (["-ngl", "-2"], "number of layers"),
                 (["-mg", "x"], "--main-gpu"),
                 (["-ctv", "q9_9"], "known: f32, f16, int8, bf16"),
                (["-ctv", "q4_0", "--method-set", "values.compress=raw"], "twice"),
                (["-fa", "off"], "tiles"),
                (["--io-backend", "aio"], "uring"), (["--rope-scaling", "dynamic"], "yarn"),
                (["--temp", "-1"], "--temp"), (["--temp", "inf"], "between 0 and 1000"),
                (["--rope-freq-base", "-1"], "0 for the model's own"),
                (["--kv-dir", ""], "--kv-dir ''"), (["--kv-dir="], "--kv-dir"),
                (["--method", "sketsh"], "did you mean 'sketch'?"),
                (["--method", "bananas"], "known: "), (["--method", "/tmp"], "is a directory"),
                (["--method", "/no/x.conf"], "no such file"), (["--top-p", "2"], "--top-p"),
                (["--top-k", "-2"], "--top-k"), (["-n", "-2"], "--predict"),
                (["--repeat-penalty", "0"], "--repeat-penalty"), (["--stop", ""], "--stop"),
                (["-t", "-1"], "--threads"), (["-s", "-2"], "--seed"), (["-c", "-5"], "--ctx-size"),
                (["--rope-freq-scale", "4"], "--rope-freq-scale"),
                (["--progress", "loud"], "--progress")]:
            with self.subTest(words=words):
                self.refused([*base, *words], said)
        for layers in ("1", "all"):
            self.refused([*base, "-ngl", layers, "-mg", "999"], "no device for --gpu-layers: ",
                         code=1)
        self.refused(["sweep", "-m", "m", "-d", "8-4"], "--depth")
        self.refused(["sweep", "-m", "m", "-p", "0", "-n", "0"], "nothing to measure")
        self.refused(["sweep", "-m", "m", "-o", "xml"], "jsonl")
        for count in ("0", "17", "2-32*2", "many"):
            self.refused(["sweep", "-m", "m", "-npl", count], "--parallel")

    def test_a_misspelt_method_is_a_wrong_command_line(self):
        for words in (["chat", "-m", "m"], ["sweep", "-m", "m"],
                      ["eval", "-m", "m", "--text", "/dev/null"]):
            self.refused([*words, "--method", "exat"], "--method 'exat'", "did you mean 'exact'?")

    def test_a_template_whose_tokens_the_model_lacks_is_refused(self):
        for words in (["generate", "-p", "x"], ["chat"]):
            self.refused([*words, "-m", TINY, "--chat-template", "llama3"], "llama3",
                         "<|start_header_id|>", "vocabulary")

    def test_statistics_begin_on_a_line_of_their_own(self):
        words = [COMMAND, "generate", "-m", TINY, "-p", "x", "--temp", "0", "-n"]
        for length in "1234":
            done = subprocess.run([*words, length], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=60, check=True)
            self.assertRegex(done.stdout, rb"(^|\n)prompt +1 token in ")
            self.assertFalse(run(*words[1:], length).stderr.startswith(b"\n"), "it is alone there")
        self.assertRegex(run(*words[1:], "1").stderr.decode(), r"generated +1 token in ")

    def test_a_missing_model_is_a_failure_that_names_it(self):
        for words in (["generate", "-p", "x"], ["sweep"], ["chat"], ["inspect"]):
            self.refused([*words, "-m", "/nowhere/model.gguf"], "/nowhere/model.gguf", code=1)
            self.refused([*words, "-m", "/tmp"], "/tmp", "regular file", code=1)

    def test_help_names_every_choice_of_the_build(self):
        version = run("--version").stdout.decode()
        built = re.search(r"instruction sets: ([^;]+);", version).group(1).split(", ")
        text = " ".join(run("generate", "--help").stdout.decode().split())
        self.assertIn("instruction set: auto, " + ", ".join(built), text)
        refused = run("generate", "-m", "m", "-p", "x", "--io-backend", "aio").stderr.decode()
        known = re.search(r"\(known: ([^)]+)\)", refused).group(1)
        self.assertIn(f"how the disk is read: {known} ", text)

    def test_a_setting_without_a_value_is_refused(self):
        self.refused(["generate", "-m", TINY, "-p", "x", "--method-set", "steady"],
                     "'steady'", "section.name=value")

    def test_a_wrong_method_costs_no_reading(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("some words " * 40)
            text.flush()
            self.refused(["eval", "-m", TINY, "--text", text.name, "--steps", "4", "--method",
                          "nosuch", "--progress", "json"], "nosuch", "known:")
            done = run("eval", "-m", TINY, "--text", text.name, "--steps", "4", "--method",
                       "nosuch", "--progress", "json")
            self.assertNotIn(b"prompt_progress", done.stderr)

    def test_more_threads_than_there_are_is_said(self):
        more = len(os.sched_getaffinity(0)) + 1
        done = run("generate", "-m", TINY, "-p", "x", "-n", "1", "-t", more)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr.decode(), rf"--threads {more}: .* so \d+ compute")

    def test_a_sweep_measures_no_number_of_threads_twice(self):
        usable = len(os.sched_getaffinity(0))
        asked = [usable, usable + 1, usable + 2, 0]
        done = run("sweep", "-m", TINY, "-p", "8", "-n", "0", "-r", "1", "--no-warmup", "-t",
                   ",".join(map(str, asked)), "-o", "jsonl", "--progress", "none")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([row["threads"] for row in rows], [usable])
        said = done.stderr.decode()
        for more in asked[1:3]:
            self.assertRegex(said, rf"--threads {more}: .* so {usable} compute, which is measured")
        self.assertIn(f"--threads 0 is {usable} here, which is measured once", said)
        done = run("sweep", "-m", TINY, "-p", "8", "-n", "0", "-r", "1", "--no-warmup", "-t",
                   usable + 1, "-o", "jsonl", "--progress", "none")
        self.assertEqual(json.loads(done.stdout)["threads"], usable)
        self.assertRegex(done.stderr.decode(), rf"--threads {usable + 1}: .* so {usable} compute\n")
        self.refused(["sweep", "-m", TINY, "-t", "1,5000"], "--threads 5000")

    def test_an_unknown_name_is_a_wrong_command_line(self):
        words = ["-m", TINY]
        with tempfile.TemporaryDirectory() as empty:
            missing = os.path.join(empty, "missing")
            for folder, said in ((missing, "is not a folder"), (empty, "no exact.conf")):
                for command in (["generate", "-p", "x"], ["chat"], ["sweep"],
                                ["eval", "--text", SOURCE / "LICENSE"]):
                    self.refused([*command, *words, "--method-dir", folder, "--method", "exact"],
                                 f"--method-dir '{folder}'", said)
            self.refused(["methods", "--method-dir", missing], missing, "is not a folder")
            # One that is broken is nothing to another.
            for name, text in (("good", "summary = good\n"), ("broken", "nonsense\n")):
                with open(os.path.join(empty, f"{name}.conf"), "w", encoding="utf-8") as file:
                    file.write(text)
            done = run("generate", *words, "-p", "x", "-n", "1", "--method-dir", empty, "--method",
                       "good")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.refused(["generate", *words, "-p", "x", "--method-dir", empty, "--method", "goof"],
                         "goof", empty)
        for command in (["generate", "-p", "x"], ["chat"]):
            self.refused([*command, *words, "--chat-template", "foo"], "foo", "chatml, llama3")
            self.refused([*command, *words, "--isa", "foo"], "foo", "scalar")

    def test_a_scale_that_no_context_could_be_is_refused(self):
        for scale in ("1e-38", "1e-8"):
            self.refused(["generate", "-m", TINY, "-p", "x", "-n", "1", "--rope-freq-scale", scale],
                         "--rope-freq-scale", "1073741824", "and 1")
        self.assertIn(b"must be at most 1073741824", run("generate", "-m", TINY, "-p", "x", "-c",
                                                         (1 << 30) + 1).stderr)

    def test_a_character_that_is_read_as_a_space_is_not_lost(self):
        for tiny in ("llama_f32", "gemma3_f16"):
            done = run("generate", "-m", SOURCE / f"tests/golden/tiny/{tiny}.gguf", "-p",
                       "a\u2581\u2581b", "-n", "1")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotIn(b"no token", done.stderr)

    def test_a_missing_folder_is_not_made_for_a_disk_that_is_not_there(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "not", "mounted")
            for dry in ([], ["--dry-run"]):
                self.refused(["generate", "-m", TINY, "-p", "x", "--kv-disk", "1GiB", "--kv-dir",
                              path, *dry], f"--kv-dir {path}", f"no {folder}/not", code=1)
            self.assertEqual(os.listdir(folder), [])

    def test_the_cache_folder_is_made_for_its_user_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            home = os.path.join(folder, "cache")
            done = subprocess.run([COMMAND, "generate", "-m", TINY, "-p", "x", "-n", "1",
                                   "--kv-disk", "1GiB"], env={"XDG_CACHE_HOME": home},
                                  capture_output=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            for path in (home, f"{home}/thermocline", f"{home}/thermocline/kv"):
                self.assertEqual(os.stat(path).st_mode & 0o777, 0o700, path)

    def notes(self, *words):
        done = run("generate", "-m", TINY, "-n", "1", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stderr.decode("utf-8").splitlines()
        return [line for line in lines if line.startswith("note")]

    def test_rows_that_are_to_be_floats_are_halves_and_it_is_said(self):
        halves = self.notes("-p", "x", "-ctk", "f16", "-ctv", "f16")
        floats = self.notes("-p", "x", "-ctk", "f32", "-ctv", "f32")
        self.assertEqual(halves, [note for note in floats if "taken as f16" not in note])
        self.assertEqual(len(floats), len(halves) + 2)
        for flag in ("-ctk f32", "-ctv f32"):
            self.assertIn(flag, " ".join(floats))

    def test_a_type_that_a_method_cannot_take_is_named_with_what_stands_against_it(self):
        words = ["-m", TINY, "--method"]
        both = ["-ctk", "lowrank", "-ctv", "lowrank"]
        for command in (["generate", "-p", "x"], ["chat"], ["sweep"],
                        ["eval", "--text", SOURCE / "LICENSE"]):
            self.refused([*command, *words, "shadowkv", "-ctk", "q8_0"],
                         "-ctk q8_0 (keys.compress): ", "leave out 'keys.compress=q8_0'",
                         "shadowkv.conf: keys.rank has no meaning for keys.compress = q8_0")
            # Of what goes with nothing: a method that is whole without it is not at fault.
            self.refused([*command, *words, "exact", *both], "leaves no bytes of a row",
                         "-ctk lowrank (keys.compress): -ctv lowrank (values.compress): ")
            self.refused([*command, *words, "h2o", "--method-set", "keys.compress=lowrank"],
                         "h2o.conf: retain.keep = h2o", "not keys.compress = lowrank")
        self.refused(["eval", *words, "exact:keys.compress=lowrank:values.compress=lowrank",
                      "--text", SOURCE / "LICENSE"], "leaves no bytes of a row")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "never.conf")
            with open(path, "w", encoding="utf-8") as file:
                file.write("[retain]\nkeep = steady\n")
            self.refused(["generate", *words, path, "-p", "x", "--method-set", "steady.sink=8"],
                         "retain.keep", code=1)

    def test_every_method_takes_a_text_too_short_to_seal_a_row(self):
        names = sorted(path.stem for path in (SOURCE / "configs/methods").glob("*.conf"))
        self.assertIn("tokenselect", names)
        for name in names:
            done = run("generate", "-m", TINY, "-p", "Hello there", "-n", "8", "--method", name)
            if name.startswith("faiss_") and b"not built with FAISS" in done.stderr:
                continue
            self.assertEqual(done.returncode, 0, f"{name}: {done.stderr.decode()[-300:]}")

    def test_a_dry_run_has_the_notes_of_a_run(self):
        with tempfile.NamedTemporaryFile() as prompt, tempfile.TemporaryDirectory() as folder:
            prompt.write(b"bytes \xff")
            prompt.flush()
            words = ["-f", prompt.name, "-c", "1000", "-b", "7", "--kv-disk", "1GiB"]
            notes = self.notes(*words, "--kv-dir", folder)
            self.assertGreaterEqual(len(notes), 3, notes)
            self.assertEqual(self.notes(*words, "--kv-dir", folder, "--dry-run"), notes)
            plan = json.loads(run("generate", "-m", TINY, *words, "--kv-dir", folder, "--dry-run",
                                  "--json", "-").stdout)
            self.assertEqual(len(plan["notes"]), len(notes))
            if os.path.isdir("/dev/shm"):
                with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
                    said = self.notes(*words, "--kv-dir", memory)
                    self.assertTrue(any("is in memory" in note for note in said), said)
                    self.assertEqual(self.notes(*words, "--kv-dir", memory, "--dry-run"), said)

    def test_what_has_no_effect_is_said(self):
        greedy = ["-p", "x", "--temp", "0"]
        for words, said in [
                ([*greedy, "--kv-dir", "/tmp"], ["--kv-dir"]),
                ([*greedy, "--io-backend", "threads"], ["--io-backend"]),
                ([*greedy, "-s", "1", "--top-k", "3"], ["--seed, --top-k"]),
                ([*greedy, "--repeat-last-n", "9"], ["--repeat-last-n"]),
                ([*greedy, "-e"], []), (["-f", str(SOURCE / "LICENSE"), "-e", "-c", "9999"],
                                        ["-e", "9,999"]),
                (greedy, []), (["-p", "x", "-s", "1", "--top-k", "3"], [])]:
            for dry in ([], ["--dry-run"]):
                with self.subTest(words=words, dry=dry):
                    if dry or "-f" not in words:
                        notes = self.notes(*words, *dry)
                        self.assertEqual(len(notes), len(said), notes)
                        for note, part in zip(notes, said):
                            self.assertIn(part, note)
        self.assertNotIn(b"note", run("generate", "-m", TINY, "-n", "1", *greedy, "-s", "1",
                                      "--quiet").stderr)
        chat = run("chat", "-m", TINY, "--chat-template", "chatml", "-n", "1", "--kv-dir", "/tmp",
                   "-b", "3", stdin=b"hello\n")
        self.assertIn(b"--kv-dir", chat.stderr)
        self.assertIn(b"-b and -ub", chat.stderr)
        self.assertNotIn(b"trained", chat.stderr)
        chat = run("chat", "-m", TINY, "--chat-template", "chatml", "-n", "1", "-c", "9999",
                   stdin=b"hello\n")
        self.assertIn(b"-c 9,999 is beyond the 256", chat.stderr)
        sweep = run("sweep", "-m", TINY, "-p", "8", "-n", "0", "-r", "1", "-c", "99", "--kv-dir",
                    "/tmp", "--no-warmup")
        self.assertIn(b"-c has no effect", sweep.stderr)
        self.assertIn(b"--kv-dir", sweep.stderr)

    def test_a_disk_too_small_for_the_plan_is_refused_at_once(self):
        mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
                  'mount -t tmpfs -o size=256k,mode=700 tmpfs "$1" && shift && exec "$@"', "sh"]
        with tempfile.TemporaryDirectory() as disk:
            words = ["-m", TINY, "-p", "x", "-n", "2900", "-c", "3000", "--ignore-eos",
                     "--method-set", "steady.seal=64", "--kv-dir", disk]
            try:
                probe = subprocess.run([*mounts, disk, "true"], capture_output=True, timeout=60,
                                       check=False)
            except OSError as error:
                self.skipTest(f"unshare: {error}")
            if probe.returncode != 0:
                self.skipTest(f"no small filesystem here: {probe.stderr.decode().strip()}")
            for more in (["--kv-disk", "1GiB"], ["--kv-disk", "1GiB", "--dry-run"],
                         ["--kv-disk", "auto"]):
                done = subprocess.run([*mounts, disk, COMMAND, "generate", *words, *more],
                                      capture_output=True, timeout=300, check=False)
                with self.subTest(more=more):
                    self.assertEqual((done.returncode, done.stdout), (1, b""), done.stderr)
                    said = done.stderr.decode()
                    self.assertEqual(said.count("\n"), 1, said)
                    self.assertRegex(said, rf"--kv-dir {disk}: 290\d positions need .* has "
                                     r"256 KiB free, for about \d+: .*-c")

    def test_a_disk_that_gives_out_half_way_is_an_error_with_statistics(self):
        without_signal = ["sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", COMMAND]
        with tempfile.TemporaryDirectory() as disk, \
                tempfile.NamedTemporaryFile("r", suffix=".json") as statistics:
            words = ["generate", "-m", TINY, "-p", "x", "-n", "2900", "-c", "3000", "--ignore-eos",
                     "--method-set", "steady.seal=64", "--kv-disk", "1GiB", "--kv-dir", disk,
                     "--json", statistics.name]
            with subprocess.Popen([*without_signal, *words], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as process:
                process.stdout.read(1)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (150 << 10, 150 << 10))
                _, said = process.communicate(timeout=300)
            answer = json.load(statistics)
            self.assertEqual(process.returncode, 1, said)
            self.assertIn("RLIMIT_FSIZE", said.decode().splitlines()[-1])
            self.assertIn("ended by an error", said.decode())
            # What is known beforehand is refused beforehand.
            for more in ([], ["--dry-run"]):
                done = subprocess.run(["sh", "-c", 'ulimit -f 150; exec "$@"', "sh", COMMAND,
                                       *words, *more],
                                      capture_output=True, timeout=300, check=False)
                self.assertEqual((done.returncode, done.stdout), (1, b""), done.stderr)
                self.assertRegex(done.stderr.decode(), r"need .* there and RLIMIT_FSIZE is 75 KiB")
        self.assertEqual(answer["stop_reason"], "error")
        self.assertGreater(answer["generated_tokens"], 0)
        self.assertGreater(answer["decode"]["disk_bytes_written"], 0)

    def test_methods(self):
        listed = run("methods", "--json", "-")
        self.assertEqual(listed.returncode, 0, listed.stderr)
        answer = json.loads(listed.stdout)
        self.assertEqual(answer["schema"], "thermocline/methods/2")
        self.assertIn("exact", [m["name"] for m in answer["methods"]])
        for method in answer["methods"]:
            for fact in ("summary", "order", "watches"):
                self.assertTrue(method[fact], f"{method['name']} does not say its {fact}")
        keys = {method["name"]: method["keys_in_memory"] for method in answer["methods"]}
        for name in ("oracle", "oracle_estimate", "tokenselect", "retrieval_attention"):
            self.assertIs(keys[name], True, name)
        for name in ("exact", "sketch", "quest", "pqcache"):
            self.assertIs(keys[name], False, name)
        watches = {method["name"]: method["watches"] for method in answer["methods"]}
        for name in ("think", "allot3", "retrieval_attention"):
            self.assertEqual(watches[name], "queries", name)
        self.assertEqual(watches["snapkv"], "last window")
        self.assertEqual(watches["h2o"], "rows")
        for name in ("exact", "kivi4", "sketch"):
            self.assertEqual(watches[name], "nothing", name)
        plain = run("methods").stdout.decode()
        self.assertRegex(plain, r"(?m)^oracle .*\n.*keys in memory: yes")
        self.assertRegex(plain, r"(?m)^sketch .*\n.*keys in memory: no")
        self.assertIn("exact", plain)
        for codec in answer["codecs"]:
            self.assertTrue(codec["summary"], codec)
            self.assertRegex(plain, rf"(?m)^{codec['name']} +{re.escape(codec['summary'])}")
        self.assertIn("; rank, energy\n", plain)

    def test_every_codec_is_a_type(self):
        codecs = [c["name"] for c in json.loads(run("methods", "--json", "-").stdout)["codecs"]]
        refused = run("generate", "-m", "m", "-p", "x", "-ctk", "q9_9").stderr.decode()
        known = re.search(r"\(known: ([^)]+)\)", refused).group(1).split(", ")
        self.assertEqual(known, ["f32", *("f16" if name == "raw" else name for name in codecs)])
        text = " ".join(run("generate", "--help").stdout.decode().split())
        self.assertIn(": " + ", ".join(known) + ";", text)

    def test_a_json_file_that_cannot_be_written_costs_no_run(self):
        with tempfile.TemporaryDirectory() as folder:
            missing = os.path.join(folder, "missing", "run.json")
            for path, why in ((missing, "No such file"), (folder, "Is a directory")):
                for words in (["generate", "-m", "/nowhere.gguf", "-p", "x"],
                              ["chat", "-m", "/nowhere.gguf"], ["inspect", "/nowhere.gguf"],
                              ["methods"]):
                    with self.subTest(words=words, path=path):
                        self.refused([*words, "--json", path], f"--json {path}", why, code=1)

    def test_a_failed_run_leaves_the_json_file_as_it_was(self):
        with tempfile.TemporaryDirectory() as folder:
            old, new = os.path.join(folder, "old.json"), os.path.join(folder, "new.json")
            with open(old, "w", encoding="utf-8") as file:
                file.write("what was measured yesterday, and longer than what comes now" * 99)
            before = os.stat(old)
            for path in (old, new):
                self.refused(["generate", "-m", "/nowhere.gguf", "-p", "x", "--json", path],
                             "/nowhere.gguf", code=1)
            self.assertEqual(os.listdir(folder), ["old.json"])
            self.assertEqual(os.stat(old).st_mtime_ns, before.st_mtime_ns)
            for path in (old, new):
                done = run("generate", "-m", TINY, "-p", "x", "-n", "1", "--json", path)
                self.assertEqual(done.returncode, 0, done.stderr)
                with open(path, encoding="utf-8") as file:
                    self.assertEqual(json.load(file)["generated_tokens"], 1)

    def test_a_json_file_may_be_a_pipe(self):
        done = run("generate", "-m", TINY, "-p", "x", "-n", "1", "--json", "/dev/stderr", "--quiet")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stderr)["generated_tokens"], 1)
        done = run("generate", "-m", TINY, "-p", "x", "-n", "1", "--json", "/dev/full", "--quiet")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"--json /dev/full", done.stderr)

    def test_no_stretching_is_advised_that_no_model_could_follow(self):
        done = run("generate", "-m", TINY, "-f", "-", stdin=b"hello " * 90000)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(b"shorten it", done.stderr)
        self.assertNotIn(b"--rope", done.stderr)

    def interrupted(self, words, stdin=subprocess.DEVNULL, before=lambda process: None,
                    after_s=0.5):
        process = subprocess.Popen([COMMAND, *words, "-m", TINY], stdin=stdin,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before(process)
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        text, said = process.communicate(timeout=60)
        self.assertEqual((process.returncode, text), (130, b""), said)
        self.assertIn(b"interrupted", said)

    def test_an_interrupt_stops_the_wait_for_a_prompt(self):
        def begin(process):
            process.stdin.write(b"the beginning of a prompt")
            process.stdin.flush()
        self.interrupted(["generate", "-f", "-"], subprocess.PIPE, begin)

    def test_an_interrupt_stops_the_reading_of_an_endless_prompt(self):
        with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
            self.interrupted(["generate", "-f", "-"], endless.stdout)
            endless.kill()

    def test_an_interrupt_stops_the_wait_for_a_pipe(self):
        with tempfile.TemporaryDirectory() as folder:
            pipe = os.path.join(folder, "prompt")
            os.mkfifo(pipe)
            self.interrupted(["generate", "-f", pipe])
            self.interrupted(["eval", "--text", pipe])

    # A stop that came too late would find that the prompt does not fit: exit code 1.
    def test_an_interrupt_stops_tokenizing(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            for _ in range(100):
                text.write("hello world and more of it, 12 times\n" * 27000)
            text.flush()
            for words in (["generate", "-f", text.name], ["eval", "--text", text.name],
                          ["generate", "-f", text.name, "--chat-template", "chatml"]):
                self.interrupted(words, after_s=1.5)

    def test_a_methods_words_do_not_act_on_the_terminal(self):
        evil = "\033[2J\033]0;owned\007"
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f"a{evil}.conf")
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"summary = {evil}\n[select]\nby = everything\n")
            broken = os.path.join(folder, "broken.conf")
            with open(broken, "w", encoding="utf-8") as file:
                file.write(f"[select]\nby = {evil}\n")
            words = ["-m", TINY, "-p", "x", "-n", "1", "--method"]
            runs = [run("generate", *words, broken), run("generate", *words, path),
                    run("generate", "-m", f"/no/{evil}", "-p", "x"), run(f"com{evil}"),
                    run("generate", f"--{evil}"), run("inspect", f"/no/{evil}"),
                    run("chat", "-m", TINY, "--chat-template", "chatml", "-n", "1",
                        stdin=f"/x{evil}\n".encode())]
            os.remove(broken)
            listed = run("methods", "--method-dir", folder)
            as_json = run("methods", "--method-dir", folder, "--json", "-")
            for done in (*runs, listed, as_json):
                self.assertNotIn(b"\033", done.stdout + done.stderr, done.args)
                self.assertIn(b"\\", done.stdout + done.stderr, done.args)
            self.assertEqual(json.loads(as_json.stdout)["methods"][0]["summary"], evil)

    def test_progress_is_json_whatever_the_text_is_called(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'a "text"\n')
            with open(path, "w", encoding="utf-8") as file:
                file.write("some words " * 20)
            done = run("eval", "-m", TINY, "--text", path, "--steps", "4", "--progress", "json")
            self.assertEqual(done.returncode, 0, done.stderr)
            events = [json.loads(line) for line in done.stderr.decode().splitlines()]
            self.assertIn('a "text"\n', events[0]["prompt_progress"]["label"])

    def test_inspect_shows_what_it_can_of_a_file_that_cannot_be_run(self):
        tiny = TINY.read_bytes()
        files = {"architecture": tiny.replace(b"llama", b"mamba"), "cut short": tiny[:-64],
                 "tensor": tiny.replace(b"output_norm.weight", b"output_nurm.weight")}
        with tempfile.TemporaryDirectory() as folder:
            for what, content in files.items():
                path = os.path.join(folder, "model.gguf")
                with open(path, "wb") as file:
                    file.write(content)
                with self.subTest(what=what):
                    shown = run("inspect", path)
                    self.assertEqual(shown.returncode, 1)
                    for text in ("supported: no", "GGUF version 3", "general.architecture",
                                 "token_embd.weight"):
                        self.assertIn(text, shown.stdout.decode())
                    self.assertEqual(shown.stderr.count(b"\n"), 1, shown.stderr)
                    as_json = run("inspect", path, "--json", "-")
                    answer = json.loads(as_json.stdout)
                    self.assertEqual((as_json.returncode, answer["supported"]), (1, False))
                    self.assertIn(answer["reason"], as_json.stderr.decode())
                    self.assertGreater(len(answer["tensors"]), 10)
            with open(path, "wb") as file:
                file.write(b"GGUF and nothing more")
            self.refused(["inspect", path], "model.gguf", code=1)

    def test_inspect_shows_whole_texts_when_asked(self):
        whole = run("inspect", TINY, "-v").stdout.decode()
        brief = run("inspect", TINY).stdout.decode()
        self.assertGreater(len(whole), len(brief))
        self.assertIn(" bytes)", brief)

    def test_a_table_that_cannot_be_written_ends_a_sweep(self):
        words = ["sweep", "-m", TINY, "-p", "4,5,6", "-n", "0", "-r", "1", "--no-warmup",
                 "--progress", "json"]
        with open("/dev/full", "wb") as full:
            done = subprocess.run([COMMAND, *words], stdout=full, stderr=subprocess.PIPE,
                                  timeout=60, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"No space left", done.stderr)

    def test_a_closed_stdout_is_no_other_files_number(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "run.json")
            done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", COMMAND, "generate", "-m",
                                   TINY, "-p", "x", "-n", "2", "--json", path],
                                  capture_output=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(b"stdout: Bad file descriptor", done.stderr)
            with open(path, encoding="utf-8") as file:
                self.assertEqual(json.load(file)["stop_reason"], "error")

    def test_a_full_stdout_is_a_failure(self):
        for words in (["methods", "--json", "-"], ["methods"], ["--version"]):
            with open("/dev/full", "wb") as full:
                done = subprocess.run([COMMAND, *words], stdout=full, stderr=subprocess.PIPE,
                                      timeout=60, check=False)
            self.assertEqual(done.returncode, 1, words)
            self.assertIn(b"stdout", done.stderr)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
