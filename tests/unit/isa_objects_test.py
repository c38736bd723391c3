#!/usr/bin/env python3
"""Files that are compiled for one instruction set give nothing to the linker to share by name.

An inline function (or a template of the standard library) that such a file does not inline becomes
a weak symbol, compiled with that file's flags. The linker keeps one of all that have its name: the
whole program, on a machine without AVX, could then run the AVX copy.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

BUILD = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build").resolve()
SKIPPED = 77

# What a file for one instruction set may export: its table of functions, and data that is the same
# in every file: a pointer to the handler of exceptions, a sanitizer's mark of the table.
ALLOWED = re.compile(r"(thermocline::k\w+Table|DW\.ref\.__gxx_personality_v0|__odr_asan\.\S+)$")


def exported(path):
    """(type, name) of what `path` defines for other files: nm's capital letters and u, v, w."""
    listed = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True,
                            check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [(kind, name) for _, kind, name in rows if kind.isupper() or kind in "uvw"]


def leaks(path):
    return [f"{kind} {name}" for kind, name in exported(path) if not ALLOWED.match(name)]


def special_objects():
    """Objects whose compiler was given an instruction set beyond the rest of the program's."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    return [pathlib.Path(entry["directory"], re.search(r"\s-o (\S+)", entry["command"])[1])
            for entry in entries
            if re.search(r"\s-m(avx|fma|f16c|amx|sse4)", entry["command"])]


class IsaObjects(unittest.TestCase):
    def test_export_their_table_and_nothing_else(self):
        objects = special_objects()
        self.assertGreaterEqual(len(objects), 2, "no file is built for an instruction set")
        for path in objects:
            with self.subTest(path=path.name):
                self.assertEqual(leaks(path), [])
                self.assertTrue(any("Table" in name for _, name in exported(path)))

    def test_a_leak_is_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            source, compiled = pathlib.Path(folder, "x.cpp"), pathlib.Path(folder, "x.o")
            source.write_text("inline int twice(int x) { return 2 * x; }\n"
                              "static int local() { return 1; }\n"
                              "extern int (*const used)(int); int (*const used)(int) = twice;\n"
                              "extern const int one; const int one = local();\n")
            subprocess.run(["g++", "-c", source, "-o", compiled], check=True)
            self.assertIn("W twice(int)", leaks(compiled))
            self.assertNotIn("local", " ".join(leaks(compiled)))


if __name__ == "__main__":
    if not (BUILD / "compile_commands.json").is_file():
        print(f"{BUILD} has no compile_commands.json: only Ninja and Makefiles write one")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0]])
