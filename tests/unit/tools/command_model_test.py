#!/usr/bin/env python3
"""The command as a user meets it with a real model: streams, signals, refusals, JSON, tables."""
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from command import COMMAND, LICENSE_TEXT, SOURCE, need_command, need_model, run

MODEL = None
GREEDY = ["--temp", "0", "-n", "8"]


def generate(*words, **more):
    return run("generate", "-m", MODEL, *words, **more)


def start(*words):
    return subprocess.Popen([COMMAND, "generate", "-m", MODEL, *map(str, words)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


class Text(unittest.TestCase):
    def test_only_text_on_stdout_and_statistics_on_stderr(self):
        done = generate("-p", "The capital of France is", *GREEDY)
        self.assertEqual(done.returncode, 0, done.stderr)
        done.stdout.decode("utf-8")
        said = done.stderr.decode()
        for word in ("prompt", "generated", "tokens/s", "first token", "read", "rows"):
            self.assertIn(word, said)
        self.assertNotIn("\033", said)
        self.assertEqual(generate("-p", "The capital of France is", *GREEDY, "--quiet").stderr, b"")

    def test_stdin_is_a_prompt_like_any_other(self):
        text = "The capital of France is"
        self.assertEqual(generate("-f", "-", *GREEDY, stdin=text.encode()).stdout,
                         generate("-p", text, *GREEDY).stdout)

    def test_escapes_only_on_request(self):
        plain, escaped = ("-p", "a\\x41\\x42", *GREEDY), ("-p", "a\\x41\\x42", "-e", *GREEDY)
        json_of = lambda words: json.loads(generate(*words, "--json", "-").stdout)
        self.assertGreater(json_of(plain)["prompt_tokens"], json_of(escaped)["prompt_tokens"])

    def test_the_same_seed_gives_the_same_text(self):
        words = ["-p", "Once upon a time", "-n", "16", "-s", "7", "--temp", "1"]
        self.assertEqual(generate(*words).stdout, generate(*words).stdout)

    def test_a_prompt_of_any_bytes_is_read_and_said(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"bytes \xff\xfe\x80 here")
            file.flush()
            done = generate("-f", file.name, *GREEDY)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("not UTF-8 at byte 6", done.stderr.decode())
        done.stdout.decode("utf-8")

    def test_bytes_without_a_token_are_counted(self):
        done = generate("-p", "\\xff\\xfe", "-e", *GREEDY)
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertIn("none of the prompt's 2 bytes has a token", done.stderr.decode())
        for words in (["-p", "a\\xffb\\xfe"], ["-p", "a\\xffb\\xfe", "--chat-template", "auto"]):
            done = generate(*words, "-e", *GREEDY)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("2 of the prompt's 4 bytes have no token", done.stderr.decode())
        self.assertNotIn("no token", generate("-p", "caf\u00e9<|im_end|>", *GREEDY).stderr.decode())

    def test_never_half_a_character(self):
        # Every length of a text full of long characters.
        for length in range(1, 12):
            done = generate("-p", "\U0001f600\U0001f601\U0001f602 \u65e5\u672c\u8a9e", "--temp",
                            "0", "-n", length, "--ignore-eos")
            done.stdout.decode("utf-8")

    def test_stop_text(self):
        whole = generate("-p", "Count: 1, 2, 3, 4,", "--temp", "0", "-n", "24").stdout.decode()
        stop = whole[6:9]
        done = generate("-p", "Count: 1, 2, 3, 4,", "--temp", "0", "-n", "24", "--stop", stop)
        self.assertEqual(done.stdout.decode(), whole[:whole.index(stop)])
        self.assertIn("stop text", done.stderr.decode())

    def test_an_empty_prompt_and_no_tokens(self):
        self.assertEqual(generate("-p", "x", "-n", "0").stdout, b"")
        self.assertEqual(generate("-f", "/dev/null", "-n", "1").returncode in (0, 2), True)


class Refusals(unittest.TestCase):
    def test_a_prompt_beyond_the_context_says_numbers_and_flags(self):
        text = LICENSE_TEXT.read_text() * 2
        done = generate("-f", "-", "-n", "1", stdin=text.encode())
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        for word in ("8,192", "-c", "--rope-scaling", "--rope-freq-scale"):
            self.assertIn(word, done.stderr.decode())

    def test_a_context_that_was_made_small_says_so(self):
        done = generate("-p", "one two three four five six seven eight nine", "-c", "4")
        self.assertEqual(done.returncode, 1)
        self.assertIn("-c allows 4", done.stderr.decode())

    def test_a_misspelt_method_is_named_with_the_known_ones(self):
        done = generate("-p", "x", "--method", "sketsh")
        self.assertEqual(done.returncode, 2)
        for word in ("sketsh", "sketch", "exact"):
            self.assertIn(word, done.stderr.decode())

    def test_a_misspelt_parameter_is_named(self):
        done = generate("-p", "x", "--method", "sketch", "--method-set", "select.shar=0.05")
        self.assertIn(done.returncode, (1, 2))
        self.assertIn("shar", done.stderr.decode())


class Signals(unittest.TestCase):
    def test_an_interrupt_stops_at_a_token_and_prints_statistics(self):
        process = start("-p", "Once upon a time", "--ignore-eos", "-n", "100000")
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        (first + rest).decode("utf-8")
        for word in ("interrupted", "generated", "tokens/s"):
            self.assertIn(word, said.decode())

    def test_an_interrupt_stops_the_reading_of_a_prompt(self):
        process = start("-f", LICENSE_TEXT, "-n", "8", "--progress", "json")
        event = json.loads(process.stderr.readline())["prompt_progress"]
        self.assertEqual(set(event), {"label", "total", "cache", "processed", "time_ms"})
        process.send_signal(signal.SIGINT)
        text, said = process.communicate(timeout=60)
        self.assertEqual((process.returncode, text), (130, b""), said)
        self.assertIn("interrupted", said.decode())

    def test_a_second_interrupt_quits(self):
        process = start("-f", LICENSE_TEXT, "-n", "8", "--progress", "json")
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertLess(time.monotonic() - begun, 10)

    def test_a_reader_that_leaves_ends_it_quietly(self):
        process = start("-p", "Once upon a time", "--ignore-eos", "-n", "100000")
        process.stdout.read(4)
        process.stdout.close()
        with process.stderr:
            said = process.stderr.read()
        self.assertEqual(process.wait(timeout=60), -signal.SIGPIPE)
        self.assertEqual(said, b"")


def typed(value, shape):
    """Whether value has the types of shape, key by key."""
    if isinstance(shape, dict):
        return all(key in value and typed(value[key], shape[key]) for key in shape)
    return isinstance(value, shape)


NUMBER = (int, float)
COST = {"steps": int, "rows_read": int, "rows_held": int, "rows_read_share": NUMBER,
        "device_bytes_read": int, "device_bytes_copied": int, "device_bytes_written": int,
        "device_bytes_fetched": int, "device_bytes_exchanged": int, "host_bytes_read": int,
        "index_bytes_read": int, "disk_bytes_read": int, "disk_reads": int,
        "row_cache_hits": int, "pages_verified": int, "stall_ms": NUMBER}
STATISTICS = {
    "schema": str, "build": {"version": str, "commit": str, "cpu": str}, "method": str,
    "model": {"path": str, "architecture": str, "context": int, "kv_bytes_per_token": int},
    "context": int, "seed": int, "text": str, "stop_reason": str, "prompt_tokens": int,
    "generated_tokens": int, "ttft_ms": NUMBER, "prefill_tokens_per_second": NUMBER,
    "decode_tokens_per_second": NUMBER, "prefill": COST, "decode": COST,
    "memory": {"total_bytes": dict, "lines": list}, "peak_resident_bytes": int, "notes": list}


class Json(unittest.TestCase):
    def test_statistics(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "run.json"
            done = generate("-p", "Hello", *GREEDY, "--ignore-eos", "--json", path)
            answer = json.loads(path.read_text())
        self.assertTrue(typed(answer, STATISTICS), answer)
        self.assertEqual(answer["schema"], "thermocline/generate/1")
        self.assertEqual(answer["text"], done.stdout.decode())
        self.assertEqual(answer["generated_tokens"], 8)
        self.assertEqual(answer["decode"]["steps"], 7)
        self.assertEqual(answer["stop_reason"], "length")

    def test_on_stdout_it_is_all_there_is(self):
        answer = json.loads(generate("-p", "Hello", *GREEDY, "--json", "-").stdout)
        self.assertEqual(answer["text"], generate("-p", "Hello", *GREEDY).stdout.decode())

    def test_a_dry_run_prints_the_plan(self):
        done = generate("-p", "Hello", "-n", "8", "--dry-run")
        self.assertEqual((done.returncode, done.stdout), (0, b""))
        self.assertIn("host", done.stderr.decode())
        plan = json.loads(generate("-p", "Hello", "-n", "8", "--dry-run", "--json", "-").stdout)
        self.assertEqual(plan["schema"], "thermocline/plan/1")
        self.assertEqual(plan["positions"], plan["prompt_tokens"] + 8)
        self.assertGreater(plan["memory"]["total_bytes"]["host"], 0)

    def test_what_a_basis_of_many_layers_is_made_with_is_planned(self):
        words = ["-f", SOURCE / "tests/golden/prompts/long/license_4k.txt", "-n", "2", "--method",
                 "xkv", "--method-set", "keys.layers=8", "--method-set", "keys.rank=1", "--json",
                 "-"]
        plan, done = (json.loads(generate(*words, *dry).stdout) for dry in (["--dry-run"], []))
        memory, resident = plan["memory"], done["peak_resident_bytes"]
        most = sum(memory["total_bytes"].values()) + memory["allowance_bytes"]
        print(f"planned {most}, resident {resident}")
        self.assertLess(resident, most)

    def test_ranks_are_said_by_layer(self):
        text = LICENSE_TEXT.read_bytes()[:4000]
        shadowkv = ["--method", "shadowkv", "--method-set", "keys.rank=auto"]
        for words, layers in ((shadowkv, 1), (["--method", "xkv"], 4)):
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "run.json"
                done = generate("-f", "-", *GREEDY, *words, "--verbose", "--json", path, stdin=text)
                self.assertEqual(done.returncode, 0, done.stderr)
                ranks = json.loads(path.read_text())["ranks"]
            said = done.stderr.decode()
            self.assertEqual([one["layer"] for one in ranks], list(range(0, 30, layers)))
            for one in ranks:
                self.assertTrue(typed(one, {"side": str, "rank": int, "bases": int,
                                            "segments": int, "captured": float}), one)
                self.assertEqual((one["side"], one["layers"], one["channels"]),
                                 ("keys", min(layers, 30 - one["layer"]), 192 * one["layers"]))
                self.assertGreaterEqual(one["segments"], one["bases"])
                if layers == 1:  # what `auto` asks for, or half of the channels
                    self.assertTrue(one["captured"] >= 0.989 or one["rank"] == 96, one)
            by_layer = re.search(r"by layer +(.*)", said).group(1).split(" ")
            self.assertEqual(by_layer, [
                f"{one['layer']}{'x%d' % one['layers'] if one['layers'] > 1 else ''}:"
                f"{one['rank']}/{one['captured']:.4f}" for one in ranks])
            mean = sum(one["rank"] for one in ranks) / len(ranks)
            self.assertRegex(said, rf"rank +keys in {mean:.1f} of \d+ numbers, which hold \d")
            self.assertGreater(len({one["rank"] for one in ranks}), 1 if layers == 1 else 0)
        brief = generate("-f", "-", *GREEDY, *shadowkv, stdin=text).stderr.decode()
        self.assertIn("keys in ", brief)
        self.assertNotIn("by layer", brief)
        self.assertNotIn("numbers, which hold", generate("-p", "Hello", *GREEDY,
                                                         "-v").stderr.decode())

    def test_inspect(self):
        done = run("inspect", MODEL, "--json", "-")
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = json.loads(done.stdout)
        self.assertTrue(answer["supported"])
        self.assertEqual(answer["model"]["architecture"], "llama")
        self.assertEqual(answer["model"]["kv_bytes_per_token"], 30 * 3 * 64 * 2 * 2)
        self.assertIn("KV cache", run("inspect", MODEL).stdout.decode())


class Chat(unittest.TestCase):
    def test_a_conversation_is_read_once(self):
        done = run("chat", "-m", MODEL, *GREEDY,
                   stdin=b"My name is Ada.\nWhat is my name?\n/help\n/nonsense\n/exit\nnot read\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        turns = [line for line in done.stderr.decode().splitlines() if line.startswith("[")]
        self.assertEqual(len(turns), 2, done.stderr)
        known = [int(turn[1:].split()[0].replace(",", "")) for turn in turns]
        self.assertEqual(known[0], 0)
        self.assertGreater(known[1], 10)
        self.assertIn("/reset", done.stderr.decode())
        self.assertIn("there is no command /nonsense", done.stderr.decode())

    def test_reset_forgets(self):
        words = ["chat", "-m", MODEL, *GREEDY]
        twice = run(*words, stdin=b"Name a colour.\n/reset\nName a colour.\n").stdout.decode()
        once = run(*words, stdin=b"Name a colour.\n").stdout.decode()
        self.assertEqual(twice, once + once)


class Tables(unittest.TestCase):
    def test_sweep(self):
        done = run("sweep", "-m", MODEL, "-p", "16", "-n", "4", "-d", "0,640", "-r", "2",
                   "--method", "exact", "-o", "json", "--text", LICENSE_TEXT)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(done.stdout)
        self.assertEqual([(row["test"], row["depth"]) for row in rows],
                         [("pp16", 0), ("tg4", 0), ("pp16", 640), ("tg4", 640)])
        for row in rows:
            self.assertGreater(row["tokens_per_s"], 0)
            self.assertGreater(row["ttft_ms"], 0)
            self.assertTrue(row["same_answers"])
            self.assertTrue(row["cpu"] and row["commit"] and row["model"])
        self.assertGreater(rows[3]["host_bytes_per_token"], rows[1]["host_bytes_per_token"])

    def test_sequences_of_a_sweep_decode_together(self):
        def sweep(*words):
            return run("sweep", "-m", MODEL, "-p", "4", "-n", "3", "-d", "600", "-r", "1",
                       "--no-warmup", "--method", "sketch", "-o", "json", *words)
        rows = json.loads(sweep("--parallel", "1,3").stdout)
        self.assertEqual([(row["test"], row["parallel"]) for row in rows],
                         [("pp4", 1), ("tg3", 1), ("pp4", 3), ("tg3", 3)])
        alone, together = rows[1], rows[3]
        # Each reads rows of its own, and all of them the weights once a step.
        for column in ("host_bytes_per_token", "index_bytes_per_token"):
            self.assertAlmostEqual(together[column] / alone[column], 1, delta=0.05)
        moved = [row["bandwidth_share"] * row["memory_bandwidth"] / row["tokens_per_s"] -
                 row["host_bytes_per_token"] - row["index_bytes_per_token"]
                 for row in (alone, together)]
        self.assertAlmostEqual(moved[0] / moved[1], 3, places=6)
        # As many as there is room for, and not one more.
        room = ["--kv-host", "60MiB"]
        fit = json.loads(sweep("--parallel", "auto", *room).stdout)[0]["parallel"]
        self.assertIn(fit, range(2, 16))
        self.assertEqual(sweep("--parallel", str(fit), *room).returncode, 0)
        refused = sweep("--parallel", str(fit + 1), *room)
        self.assertEqual(refused.returncode, 1)
        self.assertIn(b"--kv-host", refused.stderr)

    def test_a_sweep_shows_what_is_read_of_a_device_where_there_is_one(self):
        words = ["sweep", "-m", MODEL, "-p", "0", "-n", "2", "-d", "700", "-r", "1", "--no-warmup"]
        column = "device_bytes_per_token"
        self.assertNotIn(column, run(*words).stdout.decode())
        done = run(*words, "--device", "host", "--kv-device", "64MiB")
        self.assertEqual(done.returncode, 0, done.stderr)
        header, _, row = (line.split("|") for line in done.stdout.decode().splitlines())
        named = dict(zip((cell.strip() for cell in header), (cell.strip() for cell in row)))
        self.assertGreater(float(named[column].split()[0].replace(",", "")), 0, named)

    def test_eval_of_exact_beside_itself_is_no_difference(self):
        done = run("eval", "-m", MODEL, "--method", "exact", "--text", LICENSE_TEXT, "--steps", "4",
                   "--depth", "128", "-o", "jsonl")
        self.assertEqual(done.returncode, 0, done.stderr)
        row = json.loads(done.stdout)
        self.assertEqual((row["kl_max"], row["top1"], row["top1_near"]), (0, 1, 1))
        self.assertEqual(row["nll"], row["nll_full"])
        self.assertEqual((row["rows_read"], row["read"], row["index_bytes"]), (1, 1, 0))
        # 129 to 132 positions of 30 layers with 3 heads of 64 f16 keys and values: sinks and tail
        # are read too.
        self.assertEqual(row["row_bytes"], 130.5 * 30 * 3 * 64 * 2 * 2)


if __name__ == "__main__":
    need_command()
    MODEL = need_model("SmolLM2-135M-Instruct.Q4_1.gguf")
    unittest.main(argv=[sys.argv[0]])
