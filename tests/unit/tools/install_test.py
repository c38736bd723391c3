#!/usr/bin/env python3
"""Installs into an empty folder and builds the examples there, by CMake and by pkg-config."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from command import BUILD, SOURCE, need_command


def call(*words, **more):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **more)
    if done.returncode != 0:
        raise AssertionError(f"{words[0]}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def model_path():
    folder = os.environ.get("THERMOCLINE_MODELS") or pathlib.Path(
        os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "thermocline/models"
    path = pathlib.Path(folder) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return path if path.is_file() else None


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.root = pathlib.Path(cls.scratch.name)
        cls.prefix = cls.root / "prefix"
        call("cmake", "--install", BUILD, "--prefix", cls.prefix)

    def test_the_command_runs_and_finds_its_methods(self):
        command = self.prefix / "bin" / "thermocline"
        self.assertIn("exact", call(command, "methods"))
        self.assertIn(str(self.prefix), call(command, "methods"))

    def test_no_header_is_missing_and_none_is_too_many(self):
        headers = sorted(str(path.relative_to(self.prefix / "include/thermocline"))
                         for path in self.prefix.rglob("*.h"))
        self.assertIn("runtime/thermocline.h", headers)
        for header in headers:
            for line in (SOURCE / header).read_text().splitlines():
                if line.startswith('#include "'):
                    self.assertIn(line.split('"')[1], headers, f"included by {header}")

    def test_examples_by_cmake(self):
        out = self.root / "cmake"
        call("cmake", "-S", SOURCE / "examples", "-B", out,
             f"-DCMAKE_PREFIX_PATH={self.prefix}", "-DCMAKE_BUILD_TYPE=Release")
        call("cmake", "--build", out)
        self.assertIn("got 3", call(out / "own_tensors"))
        model = model_path()
        if model is None:
            self.skipTest("generate_text was built and not run: no model, run tools/fetch_models")
        text = call(out / "generate_text", model, "The capital of France is")
        self.assertGreater(len(text.split()), 3)

    def test_examples_by_pkg_config(self):
        folders = [str(path.parent) for path in self.prefix.rglob("thermocline.pc")]
        self.assertEqual(len(folders), 1)
        environment = {**os.environ, "PKG_CONFIG_PATH": folders[0]}
        flags = call("pkg-config", "--cflags", "--libs", "--static", "thermocline",
                     env=environment).split()
        for name in ("generate_text", "own_tensors"):
            call("g++", "-std=c++20", SOURCE / f"examples/{name}.cpp", *flags, "-o",
                 self.root / name)
        self.assertIn("got 3", call(self.root / "own_tensors"))
        methods = call("pkg-config", "--variable=methoddir", "thermocline", env=environment).strip()
        self.assertTrue((pathlib.Path(methods) / "exact.conf").is_file(), methods)

    def test_examples_are_as_short_as_the_readme_says(self):
        self.assertIn("each in fewer than fifty lines", (SOURCE / "README.md").read_text())
        for path in (SOURCE / "examples").glob("*.cpp"):
            self.assertLess(len(path.read_text().splitlines()), 50, path)

    def test_what_the_readme_points_at_is_installed(self):
        readme, = self.prefix.rglob("README.md")
        named = set(re.findall(r"`((?:docs|examples)/[\w./]*)`", readme.read_text()))
        self.assertGreaterEqual(named, {"docs/design.md", "docs/session_format.md", "examples/"})
        for name in named:
            self.assertTrue((readme.parent / name).exists(), name)


if __name__ == "__main__":
    need_command()
    unittest.main(argv=[sys.argv[0]])
