#!/usr/bin/env python3
"""The command where something of the disk's path is missing: it runs, its text is the same, and it
says once what it does without and what to do about it."""
import ctypes
import json
import os
import pathlib
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

from command import COMMAND, SOURCE, need_command

MIB = 1 << 20
NOBODY = 65534
EPERM, ENOSYS = 1, 38
IO_URING_SETUP = 425  # the same number everywhere


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refuse_io_uring(error):
    """A seccomp filter of this process: load the call's number; io_uring_setup is `error`."""
    code = b"".join(struct.pack("HBBI", *line) for line in [
        (0x20, 0, 0, 0), (0x15, 0, 1, IO_URING_SETUP), (0x06, 0, 0, 0x00050000 | error),
        (0x06, 0, 0, 0x7FFF0000)])
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(4, code)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def lock_no_more_than(limit):
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))


class Fallback(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        os.chmod(cls.folder.name, 0o755)
        # Where any user may run them: a build may lie below somebody's own folder.
        cls.command = shutil.copy(COMMAND, cls.folder.name)
        cls.model = shutil.copy(SOURCE / "tests/golden/tiny/llama_f32.gguf", cls.folder.name)
        cls.methods = shutil.copytree(SOURCE / "configs/methods", f"{cls.folder.name}/methods")
        for path in (cls.model, *pathlib.Path(cls.methods).iterdir()):
            os.chmod(path, 0o644)
        cls.text = cls.finish(cls.decode())[0]

    @classmethod
    def decode(cls, before=lambda: None, user=None, parent=None, more=()):
        """A decode that reads the disk; None where the machine does not allow `before`."""
        with tempfile.TemporaryDirectory(dir=parent) as disk:
            os.chmod(disk, 0o700)
            if user is not None:
                os.chown(disk, user, user)
            words = [cls.command, "generate", "-m", cls.model, "-p", "once upon a time there was",
                     "-n", "220", "-c", "250", "--ignore-eos", "--temp", "0", "--method",
                     f"{cls.methods}/exact.conf", "--method-set", "steady.seal=64", "--kv-disk",
                     "1GiB", "--kv-host", "8300KiB", "--kv-dir", disk, "--json", f"{disk}/run.json",
                     *more]
            identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
            try:
                done = subprocess.run(words, capture_output=True, timeout=120, check=False,
                                      preexec_fn=before, **identity)
            except (OSError, subprocess.SubprocessError) as refused:
                return None, refused
            report = json.loads(pathlib.Path(disk, "run.json").read_text(encoding="utf-8")) \
                if done.returncode == 0 else {}
        return done, report

    @classmethod
    def finish(cls, ran):
        """The text, and the lines that begin with note."""
        done, report = ran
        if done is None:
            raise unittest.SkipTest(f"this machine does not let a test limit itself: {report}")
        assert done.returncode == 0, done.stderr.decode()
        # It is the disk that it read, whatever else was in its way.
        assert report["decode"]["disk_reads"] > 0, report["decode"]
        assert report["disk_read_cost"]["read_us"] > 0, report["disk_read_cost"]
        notes = [line for line in done.stderr.decode().splitlines() if line.startswith("note")]
        return done.stdout, notes

    def test_nothing_missing_is_nothing_said(self):
        _, notes = self.finish(self.decode())
        self.assertEqual(notes, [])

    def test_io_uring_refused(self):
        for user in (None, NOBODY):
            if user is not None and os.geteuid() != 0:
                continue
            for error, said in (
                    (EPERM, "EPERM (kernel.io_uring_disabled or a seccomp profile)"),
                    (ENOSYS, "ENOSYS (a kernel without io_uring, or a seccomp profile)")):
                with self.subTest(said=said, user=user):
                    text, notes = self.finish(self.decode(lambda e=error: refuse_io_uring(e), user))
                    self.assertEqual(text, self.text)
                    self.assertEqual(len(notes), 1, notes)
                    self.assertIn(f"io_uring is not available: {said}; the disk is read by "
                                  "threads instead", notes[0])
        done, _ = self.decode(lambda: refuse_io_uring(EPERM), more=["--io-backend", "uring"])
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertIn(b"use --io-backend threads", done.stderr)
        _, notes = self.finish(self.decode(lambda: refuse_io_uring(EPERM),
                                           more=["--io-backend", "threads"]))
        self.assertEqual(notes, [])

    @unittest.skipIf(os.geteuid() != 0, "only root may become another user")
    def test_another_user_with_little_memory_to_lock(self):
        for limit in (8 * MIB, 4 * MIB, 64 << 10):
            with self.subTest(limit=limit):
                text, notes = self.finish(self.decode(lambda m=limit: lock_no_more_than(m), NOBODY))
                self.assertEqual(text, self.text)
                # What is not registered is read into all the same.
                self.assertIn(len(notes), [1] if limit < 8 * MIB else [0, 1], notes)
                for note in notes:
                    self.assertRegex(note, r"RLIMIT_MEMLOCK is .*\(ulimit -l [0-9]+\)")

    @unittest.skipIf(os.geteuid() != 0, "only root may become another user")
    def test_another_user_with_no_memory_to_lock(self):
        text, notes = self.finish(self.decode(lambda: lock_no_more_than(0), NOBODY))
        self.assertEqual(text, self.text)
        if not notes:
            return  # this kernel charges rings to the control group
        self.assertEqual(len(notes), 1, notes)
        self.assertIn("ENOMEM (RLIMIT_MEMLOCK is 0 bytes: see ulimit -l); the disk is read by "
                      "threads instead", notes[0])

    def test_a_filesystem_in_memory(self):
        if not os.path.isdir("/dev/shm"):
            self.skipTest("there is no /dev/shm")
        text, notes = self.finish(self.decode(parent="/dev/shm"))
        self.assertEqual(text, self.text)
        self.assertEqual(len(notes), 1, notes)
        self.assertIn("is in memory (tmpfs)", notes[0])
        self.assertIn("name a folder on a disk", notes[0])
        # Two things missing are two lines, one each.
        text, notes = self.finish(self.decode(lambda: refuse_io_uring(EPERM), parent="/dev/shm"))
        self.assertEqual(text, self.text)
        self.assertEqual(len(notes), 2, notes)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
