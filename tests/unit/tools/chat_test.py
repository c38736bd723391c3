#!/usr/bin/env python3
"""A conversation with a cache that cannot be cut everywhere: with a tiny model that talks nonsense,
so its answers never read back as the tokens that they were."""
import sys
import unittest

from command import SOURCE, need_command, run

TINY = SOURCE / "tests" / "golden" / "tiny"
WORDS = ["-n", "600", "--ignore-eos", "-s", "1", "-c", "6000"]


class Chat(unittest.TestCase):
    def turns(self, model, template, *words):
        done = run("chat", "-m", TINY / model, "--chat-template", template, *WORDS, *words,
                   stdin=b"One.\nTwo.\nThree.\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        return [line for line in done.stderr.decode().splitlines() if line.startswith("[")]

    def test_goes_on_where_a_method_has_dropped_rows(self):
        words = ["--method", "streaming", "--method-set", "steady.recent=16",
                 "--method-set", "steady.seal=64"]
        turns = self.turns("llama_mixed.gguf", "chatml", *words)
        self.assertEqual(len(turns), 3)
        self.assertTrue(turns[1].startswith("[0 tokens known"), turns)

    def test_goes_on_where_a_sliding_window_has(self):
        turns = self.turns("gemma3_f16.gguf", "gemma")
        self.assertEqual(len(turns), 3)
        self.assertTrue(turns[2].startswith("[0 tokens known"), turns)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=[sys.argv[0]])
