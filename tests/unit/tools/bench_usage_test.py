#!/usr/bin/env python3
"""A benchmark that is called wrongly says how it is called."""
import subprocess
import sys
import unittest

from command import SOURCE


class Usage(unittest.TestCase):
    def test_busy_decode_bench(self):
        script = SOURCE / "tests/bench/busy_decode_bench.py"
        for words in ([], ["."], [".", "build", "model", "2", "more"]):
            done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True,
                                  timeout=60, check=False)
            self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
            self.assertEqual(done.stderr,
                             "usage: busy_decode_bench.py SOURCE BUILD [MODEL [ROUNDS]]\n")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
