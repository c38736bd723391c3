#!/usr/bin/env python3
"""The command as a user meets it before there is a model: help, wrong words, exit codes."""
import json
import subprocess
import sys
import unittest

from command import COMMAND, need_command, run

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
        for word in ("thermocline", "instruction sets", "CUDA"):
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
                (["--kv-device", "1G"], "no GPU tier"), (["-ngl", "99"], "CPU"),
                (["-ctk", "q8_0"], "f16"), (["-ctv", "q4_0"], "f16"), (["-fa", "off"], "tiles"),
                (["--io-backend", "aio"], "uring"), (["--rope-scaling", "dynamic"], "yarn"),
                (["--temp", "-1"], "--temp"), (["--top-p", "2"], "--top-p"),
                (["--top-k", "-2"], "--top-k"), (["-n", "-2"], "--predict"),
                (["--repeat-penalty", "0"], "--repeat-penalty"), (["--stop", ""], "--stop"),
                (["-t", "-1"], "--threads"), (["-c", "-5"], "--ctx-size"),
                (["--rope-freq-scale", "4"], "--rope-freq-scale"),
                (["--progress", "loud"], "--progress")]:
            with self.subTest(words=words):
                self.refused([*base, *words], said)
        self.refused(["sweep", "-m", "m", "-d", "8-4"], "--depth")
        self.refused(["sweep", "-m", "m", "-p", "0", "-n", "0"], "nothing to measure")
        self.refused(["sweep", "-m", "m", "-o", "xml"], "jsonl")

    def test_a_missing_model_is_a_failure_that_names_it(self):
        for words in (["generate", "-p", "x"], ["sweep"], ["chat"], ["inspect"]):
            self.refused([*words, "-m", "/nowhere/model.gguf"], "/nowhere/model.gguf", code=1)

    def test_methods(self):
        listed = run("methods", "--json", "-")
        self.assertEqual(listed.returncode, 0, listed.stderr)
        answer = json.loads(listed.stdout)
        self.assertEqual(answer["schema"], "thermocline/methods/1")
        self.assertIn("exact", [m["name"] for m in answer["methods"]])
        for method in answer["methods"]:
            for fact in ("summary", "order", "watches", "keys_in_memory"):
                self.assertTrue(method[fact], f"{method['name']} does not say its {fact}")
        self.assertIn("exact", run("methods").stdout.decode())

    def test_a_full_stdout_is_a_failure(self):
        for words in (["methods", "--json", "-"], ["methods"], ["--version"]):
            with open("/dev/full", "wb") as full:
                done = subprocess.run([COMMAND, *words], stdout=full, stderr=subprocess.PIPE,
                                      timeout=60, check=False)
            self.assertEqual(done.returncode, 1, words)
            self.assertIn(b"stdout", done.stderr)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=[sys.argv[0]])
