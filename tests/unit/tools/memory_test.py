#!/usr/bin/env python3
"""What a dry run says beside what the run then holds, by its own ledger and by the system's."""
import json
import os
import pathlib
import tempfile
import unittest

from command import LICENSE_TEXT, SOURCE, need_command, run, skip

MODEL = SOURCE / "tests/golden/tiny/qwen3_q8_0.gguf"
TOKENS, CONTEXT = 256 * 1024, 256 * 1024 + 512
BOUND = 0.05
SMALL = 32 * 1024  # room for what a save says of its text


class Ledger(unittest.TestCase):
    def test_a_dry_run_is_what_a_run_comes_to(self):
        with tempfile.TemporaryDirectory() as folder:
            goes_on = ["generate", "-m", MODEL, "-c", 20000, "-n", 4, "--temp", 0, "--ignore-eos",
                       "--json", "-"]
            words = [*goes_on, "-p", LICENSE_TEXT.read_text()[:8000]]
            for tiers in ([], ["--kv-disk", "1GiB", "--kv-dir", folder]):
                for method in ("exact", "sketch", "streaming"):
                    self.compare(*words, *tiers, "--method", method)
            for method in ("exact", "sketch"):
                session = ["--session", f"{folder}/{method}.tls"]
                self.compare(*words, "--method", method, *session)
                self.compare(*goes_on, *session)

    def compare(self, *words):
        plan, done = (run(*words, *more) for more in (["--dry-run"], []))
        self.assertEqual((plan.returncode, done.returncode), (0, 0), done.stderr)
        plan, done = json.loads(plan.stdout)["memory"], json.loads(done.stdout)["memory"]
        self.assertEqual(plan["total_bytes"].keys(), done["peak_bytes"].keys())
        bounds = [(tier, plan["total_bytes"][tier], done["peak_bytes"][tier])
                  for tier in plan["total_bytes"]]
        held = {(line["tier"], line["purpose"]): line["peak_bytes"] for line in done["lines"]}
        bounds += [(line["purpose"], line["bytes"], held.get((line["tier"], line["purpose"]), 0))
                   for line in plan["lines"]]
        for what, total, peak in bounds:
            with self.subTest(words=words[-2:], what=what):
                print(f"{words[-2:]} {what}: planned {total}, held {peak}")
                self.assertLessEqual(peak, total)
                self.assertGreaterEqual(peak, min((1 - BOUND) * total, total - SMALL))


class Memory(unittest.TestCase):
    """A long text that is resumed: nothing is computed but two tokens, so that what a run holds is
    the cache, the text and the command. Rows in host memory are the row cache's."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.session = os.path.join(cls.folder.name, "s.tls")
        text = pathlib.Path(cls.folder.name) / "text"
        text.write_text(LICENSE_TEXT.read_text() * 20)
        done = run("session", "build", "-m", MODEL, "--session", cls.session, "--tokens", TOKENS,
                   "--chunk", "256", "--text", text)
        assert done.returncode == 0, done.stderr

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def generate(self, *words):
        done = run("generate", "-m", MODEL, "--session", self.session, "-c", CONTEXT, "-n", 2,
                   "--temp", 0, "--ignore-eos", "--json", "-", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def without_row_cache(self, plan):
        return sum(line["bytes"] for line in plan["memory"]["lines"]
                   if line["tier"] == "host" and line["purpose"] != "row_cache")

    def test_rows_in_memory_cost_what_was_planned(self):
        plan = self.generate("--dry-run")
        least = self.without_row_cache(plan)
        rows = plan["memory"]["total_bytes"]["host"] - least
        self.assertGreater(rows, 100 << 20, "a case too small to be seen")
        grown = self.generate()["peak_resident_bytes"] - \
            self.generate("--kv-host", least)["peak_resident_bytes"]
        print(f"planned {rows}, resident {grown}, {grown / rows:.3f}")
        self.assertLess(abs(grown - rows), BOUND * rows)

    def test_a_process_takes_no_more_than_its_plan_and_the_allowance(self):
        for method in ("exact", "ladder4"):
            words = ["generate", "-m", MODEL, "-f", LICENSE_TEXT, "-c", 40000, "-n", 4, "--temp",
                     0, "--ignore-eos", "--json", "-", "--method", method]
            plan, done = (json.loads(run(*words, *more).stdout) for more in (["--dry-run"], []))
            memory = plan["memory"]
            most = sum(memory["total_bytes"].values()) + memory["allowance_bytes"]
            print(f"{method}: planned {most}, resident {done['peak_resident_bytes']}")
            self.assertLess(done["peak_resident_bytes"], most)


if __name__ == "__main__":
    need_command()
    if not LICENSE_TEXT.is_file():
        skip(f"no {LICENSE_TEXT}")
    unittest.main(argv=["memory_test"], verbosity=2)
