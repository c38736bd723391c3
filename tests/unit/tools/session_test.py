#!/usr/bin/env python3
"""Session files as a user meets them: what goes on, what is reused and why not more, and what is
refused."""
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from command import COMMAND, LICENSE_TEXT, SOURCE, need_command, need_model, run, start

MODEL = None
TEXT = pathlib.Path(LICENSE_TEXT).read_text()[:6000]


class Session(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.file = os.path.join(self.folder.name, "s.tls")

    def tearDown(self):
        self.folder.cleanup()

    def generate(self, *words, fails=None):
        done = run("generate", "-m", MODEL, "--json", "-", *words)
        if fails is not None:
            self.assertEqual(done.returncode, fails, done.stderr)
            return done.stderr.decode()
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def soon(self):
        """Of what is started after a process was killed: what that has left costs no time."""
        began = time.monotonic()
        yield
        self.assertLess(time.monotonic() - began, 5)

    def note(self, result):
        notes = [note for note in result["notes"] if "reused" in note]
        self.assertEqual(len(notes), 1, result["notes"])
        return notes[0]

    def test_what_goes_on_is_what_never_stopped(self):
        for method in ("exact", "sketch"):
            words = ["-p", TEXT, "--method", method, "-s", "7", "--temp", "0.9"]
            whole = self.generate(*words, "-n", "24")
            first = self.generate(*words, "-n", "10", "--session", self.file)
            # Neither method nor prompt nor seed nor temperature is said again.
            second = self.generate("-n", "8", "--session", self.file)
            third = self.generate("-n", "6", "--session", self.file)
            self.assertEqual(first["text"] + second["text"] + third["text"], whole["text"])
            self.assertEqual(second["method"], method)
            self.assertEqual(second["seed"], 7)
            self.assertEqual(second["cached_tokens"], second["prompt_tokens"] - 1)
            self.assertEqual(second["prefill"]["disk_bytes_written"], 0)
            self.assertGreater(second["decode"]["rows_read"], 0)
            self.assertGreater(second["decode"]["disk_bytes_written"], 0, "the save")
            os.remove(self.file)

    def test_it_reuses_what_agrees_and_says_why_not_more(self):
        prompt = self.generate("-p", TEXT, "-n", "4", "--temp", "0", "--session",
                               self.file)["prompt_tokens"]
        again = self.generate("-p", TEXT, "-n", "4", "--temp", "0", "--session", self.file)
        self.assertEqual(again["cached_tokens"], prompt - 1)
        self.assertIn("the last one is read again", self.note(again))
        more = self.generate("-p", TEXT + " And more.", "-n", "4", "--temp", "0", "--session",
                             self.file)
        self.assertGreaterEqual(more["cached_tokens"], prompt - 2)
        self.assertIn("differ from token", self.note(more))
        self.assertEqual(more["text"], self.generate("-p", TEXT + " And more.", "-n", "4",
                                                     "--temp", "0")["text"])
        other = self.generate("-p", TEXT[:3000] + "XYZ" + TEXT[3000:], "-n", "4", "--temp", "0",
                              "--session", self.file)
        self.assertLess(other["cached_tokens"], prompt)
        self.assertGreater(other["cached_tokens"], prompt // 3)
        self.assertIn("differ from token", self.note(other))

    def interrupt_reading(self, prompt, by):
        """What the command says at the end, stopped by a signal while it reads."""
        with start("generate", "-m", MODEL, "-p", prompt, "-n", "2", "--session", self.file,
                   "--progress", "json", "-t", "1") as process:
            for line in process.stderr:
                if b'"processed"' in line:
                    break
            process.send_signal(by)
            said = process.stderr.read()
        self.assertEqual(process.returncode, 128 + by, said)
        return said

    def test_a_text_is_not_lost_to_a_prompt_that_was_not_meant_or_not_read(self):
        self.generate("-p", TEXT, "-n", "2", "--session", self.file)
        before = pathlib.Path(self.file).read_bytes()
        said = self.generate("-p", "Hello", "-n", "2", "--session", self.file, fails=1)
        self.assertIn("it would lose the others", said)
        self.assertIn("session rm", said)
        self.assertEqual(pathlib.Path(self.file).read_bytes(), before)
        held = self.generate("-n", "0", "--session", self.file)["prompt_tokens"]
        # Interrupted while it reads: what was held is still there, all of it.
        other = TEXT[:5000] + TEXT * 3
        self.assertIn(b"keeps what it held", self.interrupt_reading(other, signal.SIGTERM))
        again = self.generate("-n", "0", "--session", self.file)
        self.assertEqual(again["prompt_tokens"], held)
        # So with one that begins like all of the text: what it knew of the next token is there.
        copy = self.file + ".copy"
        shutil.copy(self.file, copy)
        longer = TEXT + self.generate("-n", "40", "--ignore-eos", "--temp", "0", "--session",
                                      copy)["text"] + TEXT * 3
        shutil.copy(self.file, copy)
        self.interrupt_reading(longer, signal.SIGINT)
        texts = [self.generate("-n", "8", "--session", file)["text"] for file in (self.file, copy)]
        self.assertEqual(texts[0], texts[1])

    def test_what_was_killed_while_writing_goes_on_from_its_prompt_as_it_began(self):
        words = ["-p", TEXT, "-s", "7", "--temp", "0.9", "-c", "4000"]
        whole = self.generate(*words, "-n", "8")
        with start("generate", "-m", MODEL, *words, "-n", "2000", "--ignore-eos", "--session",
                   self.file) as process:
            self.assertTrue(process.stdout.read(1))  # the prompt is saved by then
            process.kill()
        with self.soon():
            again = self.generate("-n", "8", "--session", self.file, "-c", "4000")
        self.assertEqual((again["text"], again["seed"]), (whole["text"], 7))

    def test_two_that_begin_one_file_are_not_both_let_in(self):
        words = ["-p", TEXT, "-n", "4", "--temp", "0", "--session", self.file]
        with start("generate", "-m", MODEL, *words, "--progress", "json", "-t", "1") as first:
            for line in first.stderr:
                if b'"processed"' in line:
                    break
            # The file is nowhere yet, and nothing is read to find that it is to be another's.
            self.assertFalse(os.path.exists(self.file))
            for command in (["generate", *words[:4]], ["chat"]):
                done = run(command[0], "-m", MODEL, *command[1:], "--session", self.file,
                           stdin=b"Hello\n")
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn(f"{self.file} is being made by another process: wait for it, or name "
                              "another".encode(), done.stderr)
                self.assertEqual(done.stdout, b"")
            self.assertIsNone(first.poll(), "it still reads")
            text = first.stdout.read().decode()
        self.assertEqual(first.returncode, 0)
        self.assertEqual(text, self.generate(*words[:-2])["text"])
        self.generate("-n", "2", "--session", self.file)
        # A killed one is in nobody's way.
        other = self.file + "2"
        with start("generate", "-m", MODEL, *words[:-1], other, "--progress", "json") as killed:
            for line in killed.stderr:
                if b'"processed"' in line:
                    break
            killed.kill()
        self.generate(*words[:-1], other)

    def test_a_full_context_is_refused_and_nothing_of_the_text_is_lost(self):
        prompt = self.generate("-p", TEXT, "-n", "0")["prompt_tokens"]
        context = str(prompt + 4)
        full = self.generate("-p", TEXT, "-n", "50", "-c", context, "--ignore-eos", "--session",
                             self.file)
        self.assertEqual(full["stop_reason"], "length")
        said = self.generate("-n", "2", "-c", context, "--session", self.file, fails=1)
        self.assertIn("--session " + self.file + " has ", said)
        # Stretched now, its rows would be another text's: what is said to be enough is.
        held = self.generate("-n", "0", "-c", str(prompt + 50), "--session", self.file)
        stretch = ["-c", str(held["prompt_tokens"]), "--session", self.file]
        said = self.generate("-n", "1", *stretch, fails=1)
        self.assertNotIn("--rope-scaling", said)
        enough = re.search(r"say -c (\d+) or more", said)[1]
        self.generate("-n", "0", "-c", enough, "--session", self.file)
        more = self.generate("-n", "2", "-c", str(prompt + 50), "--session", self.file)
        self.assertEqual(more["prompt_tokens"], prompt + full["generated_tokens"])

    def test_another_method_or_model_is_refused_and_the_file_stays(self):
        self.generate("-p", TEXT, "-n", "2", "--method", "sketch", "--session", self.file)
        before = pathlib.Path(self.file).read_bytes()
        said = self.generate("-n", "2", "--session", self.file, "--method", "exact", fails=2)
        self.assertRegex(said, "is of method .*select.by=sketch")
        said = self.generate("-n", "2", "--session", self.file, "--rope-freq-base", "20000",
                             fails=2)
        self.assertRegex(said, "is of rotation .*: say --rope-scaling, --rope-freq-scale and "
                               "--rope-freq-base as then")
        # What is said over the method is said over the session's.
        said = self.generate("-n", "2", "--session", self.file, "--method-set", "select.share=0.05",
                             fails=2)
        self.assertRegex(said, "is of method .*select.by=sketch.* this run's is .*select.by=sketch"
                               ".*select.share=0.05")
        said = self.generate("-n", "2", "--session", self.file, "--kv-disk", "0", fails=2)
        self.assertIn("a session is on the disk", said)
        said = run("generate", "--help").stdout
        self.assertEqual(said.count(b"Session:"), 1)
        # A dry run says it too.
        said = self.generate("-n", "2", "--session", self.file, "--method", "exact", "--dry-run",
                             fails=2)
        self.assertRegex(said, "is of method .*select.by=sketch")
        done = run("generate", "-m", MODEL, "-n", "2", "--session", self.file, "--json", self.file)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"would be written over it", done.stderr)
        self.assertEqual(pathlib.Path(self.file).read_bytes(), before)

    def test_no_statistics_are_written_over_a_session(self):
        new = self.file + ".new"
        done = run("chat", "-m", MODEL, "--session", new, "--json", new, stdin=b"Hello\n")
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"would be written over it", done.stderr)
        self.assertFalse(os.path.exists(new))
        run("chat", "-m", MODEL, "-n", "2", "--session", self.file, stdin=b"Hello\n")
        before = pathlib.Path(self.file).read_bytes()
        for words in (["chat", "-m", MODEL, "-n", "2", "--session", self.file],
                      ["chat", "-m", MODEL, "-n", "2"], ["generate", "-m", MODEL, "-p", "Hello"],
                      ["session", "ls", self.folder.name], ["session", "show", self.file]):
            done = run(*words, "--json", self.file, stdin=b"Hello\n")
            self.assertEqual(done.returncode, 2, words)
            self.assertIn(b"would be written over", done.stderr)
            self.assertEqual(pathlib.Path(self.file).read_bytes(), before)

    def test_refusals(self):
        said = self.generate("-n", "2", "--session", self.file, fails=2)
        self.assertIn("no prompt", said)
        self.assertFalse(os.path.exists(self.file))
        pathlib.Path(self.file).write_text("something else" * 1000)
        said = self.generate("-p", "x", "-n", "2", "--session", self.file, fails=1)
        self.assertIn("not a session file", said)
        self.assertTrue(pathlib.Path(self.file).read_text().startswith("something else"))
        said = self.generate("-p", "x", "-n", "2", "--session", self.folder.name + "/no/s", fails=1)
        self.assertIn("its folder", said)
        said = self.generate("-p", TEXT, "-n", "2", "--session", self.folder.name + "/t",
                             "--kv-disk", "1MiB", fails=1)
        self.assertIn("--kv-disk", said)

    def test_the_command_that_looks_after_them(self):
        self.generate("-p", TEXT, "-n", "2", "--method", "sketch", "--session", self.file)
        listed = json.loads(run("session", "ls", self.folder.name, "--json", "-").stdout)
        self.assertEqual([one["path"] for one in listed["sessions"]], [self.file])
        shown = run("session", "show", self.file).stdout.decode()
        for part in ("tokens", "sketch", "model", "tokenizer", "segments"):
            self.assertIn(part, shown)
        sound = run("session", "verify", self.file)
        self.assertEqual(sound.returncode, 0, sound.stdout)
        self.assertIn(b"sound", sound.stdout)
        size = os.path.getsize(self.file)
        with open(self.file, "r+b") as file:  # in the middle there are rows
            file.seek(size // 2)
            byte = file.read(1)
            file.seek(size // 2)
            file.write(bytes([byte[0] ^ 1]))
        damaged = run("session", "verify", self.file + ".none", self.file)
        self.assertEqual(damaged.returncode, 1)
        self.assertIn(b"is damaged", damaged.stdout)
        self.assertIn(b"s.tls.none: could not open it", damaged.stderr)
        said = self.generate("-n", "2", "--session", self.file, fails=1)
        self.assertIn("damaged", said)
        other = os.path.join(self.folder.name, "notes.txt")
        pathlib.Path(other).write_text("mine")
        self.assertEqual(run("session", "rm", other).returncode, 1)
        self.assertTrue(os.path.exists(other))
        self.assertEqual(run("session", "rm", self.file).returncode, 0)
        self.assertFalse(os.path.exists(self.file))
        self.assertEqual(run("session").returncode, 2)
        self.assertIn(b"did you mean 'ls'", run("session", "lss").stderr)

    def build(self, *words, fails=0):
        done = run("session", "build", "-m", MODEL, *words)
        self.assertEqual(done.returncode, fails, done.stderr)
        return done.stderr.decode()

    def test_long_contexts_are_built_of_texts_and_sealed_anew(self):
        raw, sealed = self.folder.name + "/raw", self.folder.name + "/sealed"
        text = ["--text", LICENSE_TEXT, "--chunk", "512"]
        said = self.build("--session", raw, "--tokens", "1k", *text)
        self.assertIn("1,024 tokens, 0 of them there already", said)
        # A longer one goes on at the end of the last whole text.
        said = self.build("--session", raw, "--tokens", "2k", *text)
        self.assertIn("2,048 tokens, 1,024 of them there already", said)
        self.assertIn("name another", self.build("--session", raw, "--from", raw, fails=2))
        self.build("--session", sealed, "--from", raw, "--method", "sketch")
        straight = self.folder.name + "/straight"
        self.build("--session", straight, "--tokens", "2k", *text)
        texts = [self.generate("-n", "8", "--temp", "0", "--session", file)["text"]
                 for file in (raw, straight)]
        self.assertEqual(texts[0], texts[1])
        goes_on = self.generate("-n", "8", "--temp", "0", "--session", sealed)
        self.assertEqual(goes_on["method"], "sketch")
        self.assertEqual(goes_on["cached_tokens"], 2048)
        self.assertLess(goes_on["decode"]["rows_read_share"], 0.2)
        # Of which a segment is longer than what the raw rows' own cache would ever form.
        longest = self.folder.name + "/longest"
        self.build("--session", longest, "--tokens", "3110", "--chunk", "4k",
                   "--text", LICENSE_TEXT)
        said = self.build("--session", longest + ".sketch", "--from", longest, "--method", "sketch",
                          "--tokens", "7")
        self.assertIn("--tokens has no effect", said)
        said = self.build("--session", raw, "--tokens", "1M", "-c", "10", *text, fails=2)
        self.assertIn("name more of them", said)
        self.assertIn("-c has no effect", said)
        self.assertIn("say what it is made of", self.build("--session", raw, fails=2))
        self.assertIn("there already", self.build("--session", sealed, "--from", raw,
                                                  "--method", "sketch", fails=2))

    def test_what_was_built_is_not_spoiled_by_building_it_again(self):
        text = ["--text", LICENSE_TEXT, "--chunk", "512"]
        for tokens in ("1k", "1300"):
            self.build("--session", self.file, "--tokens", tokens, *text)
            copies = [self.file + str(i) for i in range(2)]
            shutil.copy(self.file, copies[0])
            said = self.build("--session", self.file, "--tokens", tokens, *text)
            self.assertRegex(said, "([0-9,]+) tokens, \\1 of them there already")
            shutil.copy(self.file, copies[1])
            texts = [self.generate("-n", "8", "--temp", "0", "--session", copy)["text"]
                     for copy in copies]
            self.assertEqual(texts[0], texts[1])
            said = self.build("--session", copies[1], "--tokens", "2k", *text, fails=2)
            self.assertIn("is another text after", said)
            said = self.build("--session", self.file, "--tokens", "700", *text, fails=2)
            self.assertIn("what is to be built ends after 700", said)
            os.remove(self.file)

    def test_a_long_prompt_is_saved_while_it_is_read(self):
        text = os.path.join(self.folder.name, "text")
        pathlib.Path(text).write_text(LICENSE_TEXT.read_text() * 2)
        words = ["generate", "-m", SOURCE / "tests/golden/tiny/qwen3_q8_0.gguf", "-f", text, "-n",
                 "2", "-c", "100000", "--temp", "0", "--session", self.file, "--json", "-"]
        with subprocess.Popen([COMMAND, *words], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as process:
            while not os.path.exists(self.file):
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            process.kill()
        done = run(*words)
        self.assertEqual(done.returncode, 0, done.stderr)
        done = json.loads(done.stdout)
        self.assertEqual(done["cached_tokens"], 32768)
        os.remove(self.file)
        whole = json.loads(run(*words).stdout)
        self.assertEqual((whole["cached_tokens"], whole["text"]), (0, done["text"]))

    def test_a_link_is_no_session(self):
        os.symlink("elsewhere", self.file)
        for words in (["generate", "-m", MODEL, "-p", "x"], ["chat", "-m", MODEL]):
            done = run(*words, "--session", self.file)
            self.assertIn(f"{self.file} is a symbolic link: name the file itself".encode(),
                          done.stderr)

    def test_both_sessions_of_a_build_share_the_memory(self):
        text = os.path.join(self.folder.name, "text")
        pathlib.Path(text).write_text(TEXT)
        self.build("--session", self.file, "--tokens", "1k", "--chunk", "512", "--text", text)
        words = ["--from", self.file, "--method", "sketch", "--progress", "none", "--session"]
        said = self.build(*words, self.file + "2", "--kv-host", "40MiB", fails=1)
        self.assertIn("reading " + self.file + " takes ", said)
        least = re.search(r"say --kv-host (\d+)K or more", said)[1]
        self.build(*words, self.file + "2", "--kv-host", f"{int(least) - 1}K", fails=1)
        self.build(*words, self.file + "2", "--kv-host", least + "K")

    def read_kept(self, text, size):
        done = run("generate", "-m", MODEL, "--json", "-", "-n", "4", "--temp", "0", "-p", text,
                   "--prefix-cache", size,
                   environment=dict(os.environ, XDG_CACHE_HOME=self.folder.name))
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_prompts_are_kept_within_a_budget(self):
        environment = dict(os.environ, XDG_CACHE_HOME=self.folder.name)
        folder = pathlib.Path(self.folder.name) / "thermocline" / "prefixes"

        read = self.read_kept

        def held():
            return sum(file.stat().st_blocks * 512 for file in folder.iterdir())
        first, again = read(TEXT, "64MiB"), read(TEXT, "64MiB")
        self.assertEqual(first["cached_tokens"], 0)
        self.assertEqual(again["cached_tokens"], again["prompt_tokens"])
        self.assertEqual(again["text"], first["text"])
        self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
        longer = read(TEXT + "\n\nAnd", "64MiB")
        self.assertGreater(longer["cached_tokens"], first["prompt_tokens"] - 3)
        self.assertEqual(longer["text"],
                         self.generate("-p", TEXT + "\n\nAnd", "-n", "4", "--temp", "0")["text"])
        self.assertEqual(len(list(folder.iterdir())), 1, "the longer one holds the shorter")
        shorter = read(TEXT[:4000], "64MiB")
        self.assertGreater(shorter["cached_tokens"], 500)
        # Another text pushes the first out where both are too much.
        other = "Some other text. " + TEXT[1000:6000]
        one = held()
        read(other, str(one + one // 2))
        self.assertLessEqual(held(), one + one // 2)
        self.assertEqual(len(list(folder.iterdir())), 1)
        self.assertEqual(read(other, "64MiB")["cached_tokens"] > 0, True)
        self.assertEqual(read(TEXT, "64MiB")["cached_tokens"], 0)
        listed = run("session", "ls", environment=environment).stdout.decode()
        self.assertIn("prefixes", listed)
        # The budget holds for a run that finds its prompt, too, and for one that keeps none.
        self.assertEqual(len(list(folder.iterdir())), 2)
        one = max(file.stat().st_blocks * 512 for file in folder.iterdir())
        self.assertGreater(read(other, str(one))["cached_tokens"], 0)
        self.assertEqual(len(list(folder.iterdir())), 1)
        small = read("A third. " + TEXT[500:], "1MiB")
        self.assertTrue(any("too small for this prompt" in note for note in small["notes"]))
        self.assertEqual(held(), 0)
        for size in ("auto", "0"):
            done = run("generate", "-m", MODEL, "-p", "x", "--prefix-cache", size)
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"--prefix-cache {size} is no budget".encode(), done.stderr)
        both = run("generate", "-m", MODEL, "-p", "x", "--session", self.file, "--prefix-cache",
                   "1G")
        self.assertEqual(both.returncode, 2)

    def keep_prompt(self, *words, at_once=1, size="64MiB"):
        """Equal runs with --prefix-cache: their results, and the folder."""
        started = [subprocess.Popen(
            [COMMAND, "generate", "-m", MODEL, "--json", "-", "-n", "4", "--temp", "0", "-p", TEXT,
             "--prefix-cache", size, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(os.environ, XDG_CACHE_HOME=self.folder.name)) for _ in range(at_once)]
        results = []
        for one in started:
            out, said = one.communicate()
            self.assertEqual(one.returncode, 0, said)
            results.append(json.loads(out))
        return results, pathlib.Path(self.folder.name) / "thermocline" / "prefixes"

    def test_room_is_made_before_a_prompt_is_written(self):
        _, folder = self.keep_prompt()
        entry, = folder.iterdir()
        with subprocess.Popen(
                [COMMAND, "generate", "-m", MODEL, "-p", "Another. " + TEXT, "--progress", "json",
                 "--prefix-cache", str(entry.stat().st_blocks * 512)], stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(os.environ, XDG_CACHE_HOME=self.folder.name)) as process:
            for line in process.stderr:
                if b'"processed"' in line:
                    break
            self.assertFalse(entry.exists())
            process.kill()

    def test_a_dry_run_makes_no_folder_for_prompts(self):
        _, folder = self.keep_prompt("--dry-run")
        self.assertFalse(folder.exists())

    def test_equal_prompts_are_read_at_once(self):
        # Whichever comes later reads its prompt by itself.
        results, folder = self.keep_prompt(at_once=3)
        self.assertEqual(len({result["text"] for result in results}), 1)
        self.assertEqual(len(list(folder.iterdir())), 1)

    def test_a_kept_prompt_in_use_is_left_out(self):
        [due], folder = self.keep_prompt()
        entry, = folder.iterdir()
        with open(entry, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            [again], _ = self.keep_prompt()
        self.assertEqual(again["text"], due["text"])
        self.assertTrue(any("in use by another process" in note for note in again["notes"]))
        self.assertTrue(entry.exists())

    def test_a_kept_prompt_that_a_run_cannot_use_stays(self):
        [due], folder = self.keep_prompt()
        entry, = folder.iterdir()
        entry.chmod(0o620)  # it would be chosen, is sound, and cannot be opened
        [other], _ = self.keep_prompt(size="32MiB")
        self.assertEqual(other["text"], due["text"])
        said, = [note for note in other["notes"] if "left out of this run" in note]
        self.assertIn("may be written to by others", said)
        self.assertNotIn("removed", said)
        self.assertTrue(entry.exists())

    def test_a_damaged_kept_prompt_is_removed(self):
        for pages in (1, None):  # of the first segment's rows; all but the headers
            [due], folder = self.keep_prompt()
            entry, = folder.iterdir()
            with open(entry, "r+b") as file:
                last = 2 + pages if pages else os.path.getsize(entry) // 4096
                for page in range(2, last):
                    file.seek(page * 4096)
                    file.write(b"damaged")
            [again], _ = self.keep_prompt()
            self.assertEqual(again["text"], due["text"])
            self.assertTrue(any("it is removed" in note for note in again["notes"]),
                            again["notes"])
            self.assertFalse(entry.exists())
            self.keep_prompt()
            [used], _ = self.keep_prompt()
            self.assertEqual(used["cached_tokens"], used["prompt_tokens"])
            shutil.rmtree(folder)

    def test_prompts_that_begin_alike_are_both_kept(self):
        folder = pathlib.Path(self.folder.name) / "thermocline" / "prefixes"
        one, other = (TEXT[:3000] + " " + TEXT[at:at + 1500] for at in (4000, 4500))
        read = self.read_kept
        first = read(one, "64MiB")
        entry, = folder.iterdir()
        # Without room for both, the one that is there serves the other, and stays.
        small = read(other, str(entry.stat().st_blocks * 512 * 5 // 4))
        self.assertTrue(any("beside one that begins alike" in note for note in small["notes"]),
                        small["notes"])
        self.assertGreater(small["cached_tokens"], 500)
        self.assertEqual([*folder.iterdir()], [entry])
        branch = read(other, "64MiB")
        self.assertEqual((branch["cached_tokens"], branch["text"]),
                         (small["cached_tokens"], small["text"]))
        self.assertEqual(branch["text"],
                         self.generate("-p", other, "-n", "4", "--temp", "0")["text"])
        for text, due in ((one, first), (other, branch)):
            again = read(text, "64MiB")
            self.assertEqual((again["cached_tokens"], again["text"]),
                             (again["prompt_tokens"], due["text"]))
        self.assertEqual(len([*folder.iterdir()]), 2)
        # However much longer the text is that begins like a kept one.
        longer = read(TEXT[:3000] + TEXT[5000:] + TEXT, "64MiB")
        self.assertGreater(longer["cached_tokens"], 500)
        shutil.rmtree(folder)

    def test_a_dry_run_refuses_what_a_run_refuses(self):
        self.generate("-p", TEXT, "-n", "1", "--session", self.file)
        words = ["generate", "-m", MODEL, "-p", "hello", "--session", self.file, "--temp", "0"]
        planned, done = run(*words, "--dry-run"), run(*words)
        self.assertEqual((planned.returncode, planned.stderr), (done.returncode, done.stderr))
        self.assertIn(b"it would lose the others", planned.stderr)
        # What keeps no prompt does without; in a dry run, too.
        words = ["generate", "-m", MODEL, "-p", TEXT, "-n", "1", "--method", "snapkv",
                 "--prefix-cache", "64MiB", "--json", "-"]
        environment = dict(os.environ, XDG_CACHE_HOME=self.folder.name)
        for more in (["--dry-run"], []):
            done = run(*words, *more, environment=environment)
            self.assertEqual(done.returncode, 0, done.stderr)
            notes = json.loads(done.stdout)["notes"]
            self.assertTrue(any("--prefix-cache is left out" in note for note in notes), notes)

    def test_a_kept_prompt_holds_no_row_that_was_generated(self):
        environment = dict(os.environ, XDG_CACHE_HOME=self.folder.name)
        folder = pathlib.Path(self.folder.name) / "thermocline" / "prefixes"
        words = [COMMAND, "generate", "-m", MODEL, "-p", TEXT, "--temp", "0", "--ignore-eos",
                 "--method", "sketch", "--prefix-cache", "64MiB", "-c", "20000"]
        done = run(*words[1:], "-n", "1", environment=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        entry, = folder.iterdir()
        kept = entry.stat().st_blocks
        for prompt in (TEXT, "Another. " + TEXT):  # one that is kept already, and a new one
            words[words.index("-p") + 1] = prompt
            with subprocess.Popen([*words, "-n", "4000"], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, env=environment) as process:
                written = 0
                while written < 2000:  # some hundred tokens at least: rows are sealed by 64
                    written += len(process.stdout.read1(4096))
                process.kill()
            sizes = {file: file.stat().st_blocks for file in folder.iterdir()}
            self.assertLessEqual(abs(max(sizes.values()) - kept), kept // 50, sizes)
        shutil.rmtree(folder)

    def test_a_damaged_kept_prompt_that_was_shown_from_is_written_without_it(self):
        words = ["generate", "-m", MODEL, "-n", "24", "--temp", "0.8", "-s", "3", "--ignore-eos",
                 "-p", TEXT, "--prefix-cache", "64MiB"]
        environment = dict(os.environ, XDG_CACHE_HOME=self.folder.name)
        due = run(*words, environment=environment)
        entry, = (pathlib.Path(self.folder.name) / "thermocline" / "prefixes").iterdir()
        with open(entry, "r+b") as file:  # of rows that the first step after the first token reads
            file.seek(2 * 4096)
            file.write(b"damaged")
        again = run(*words, environment=environment)
        self.assertEqual((again.returncode, again.stdout), (0, due.stdout), again.stderr)
        self.assertIn(b"it is removed", again.stderr)
        for wrong in (b"reused", b"--session"):
            self.assertNotIn(wrong, again.stderr)
        self.assertFalse(entry.exists())

    def test_a_place_for_the_text_that_is_full_is_not_the_kept_prompts_fault(self):
        _, folder = self.keep_prompt()
        with open("/dev/full", "wb") as full:
            done = subprocess.run([COMMAND, "generate", "-m", MODEL, "-n", "8", "-p", TEXT,
                                   "--prefix-cache", "64MiB"], stdout=full, stderr=subprocess.PIPE,
                                  env=dict(os.environ, XDG_CACHE_HOME=self.folder.name),
                                  check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"No space left", done.stderr)
        self.assertNotIn(b"left out of this run", done.stderr)
        self.assertEqual(len(list(folder.iterdir())), 1)

    def test_an_answer_that_is_cut_off_leaves_a_conversation_that_goes_on(self):
        words = ["chat", "-m", MODEL, "--temp", "0", "--session", self.file]

        def ask(message, *more):
            done = run(*words, *more, stdin=message)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout.decode(), done.stderr.decode()

        def cut_off(message, by):
            with subprocess.Popen([COMMAND, *words, "-n", "4000", "--ignore-eos"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) as process:
                process.stdin.write(message)
                process.stdin.flush()
                self.assertTrue(process.stdout.read(1))  # what was read is saved by then
                process.send_signal(by)
                process.stdout.read()
            self.assertEqual(process.returncode, -by if by == signal.SIGKILL else 128 + by)

        first, question = b"Name a colour.\n", (TEXT[:1500].replace("\n", " ") + "\n").encode()
        ask(first, "-n", "8")
        copy = self.file + ".copy"
        shutil.copy(self.file, copy)
        whole, _ = ask(question, "-n", "8")
        os.rename(copy, self.file)
        cut_off(question, signal.SIGKILL)
        self.assertEqual(run("session", "verify", self.file).returncode, 0)
        with self.soon():
            again, said = ask(question, "-n", "8")
        self.assertIn("goes on after 2 messages", said)
        self.assertEqual(again, whole)
        known, read = map(int, re.search(r"\[(\d+) tokens known, (\d+) read", said).groups())
        self.assertGreater(known, 20 * read, "it was read before")
        # One that is stopped is as long as it has become.
        cut_off(b"And another?\n", signal.SIGTERM)
        _, said = ask(b"Why?\n", "-n", "4")
        self.assertIn("goes on after 6 messages", said)

    def test_a_conversation_goes_on(self):
        def chat(message, *words):
            done = run("chat", "-m", MODEL, "-n", "8", "--temp", "0", "--session", self.file,
                       *words, stdin=message.encode())
            return done.returncode, done.stdout.decode(), done.stderr.decode()
        whole = run("chat", "-m", MODEL, "-n", "8", "--temp", "0",
                    stdin=b"Name a colour.\nAnother one?\n").stdout.decode()
        first, second = chat("Name a colour.\n"), chat("Another one?\n")
        self.assertEqual(first[1] + second[1], whole)
        self.assertIn("goes on after 2 messages", second[2])
        code, _, said = chat("Hello\n", "--system-prompt", "You are a pirate.")
        self.assertEqual(code, 2)
        self.assertIn("another system message", said)
        # Neither command takes the other's text for its own.
        said = self.generate("-n", "2", "--session", self.file, fails=1)
        self.assertIn("thermocline chat", said)
        os.remove(self.file)
        self.generate("-p", "Once", "-n", "2", "--session", self.file)
        code, _, said = chat("Hello\n")
        self.assertEqual(code, 1)
        self.assertIn("thermocline generate", said)


if __name__ == "__main__":
    need_command()
    MODEL = need_model("SmolLM2-135M-Instruct.Q4_1.gguf")
    unittest.main(argv=sys.argv[:1], verbosity=2)
