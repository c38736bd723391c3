#!/usr/bin/env python3
"""The rules of the house that a compiler does not check.

Rooms look to the left only; the command sees nothing but the library's face and the words; every
header compiles alone; lines, tabs and left-over notes; CUDA launches name their stream.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()

# A room may include itself and the rooms before it. kernels/base is a room of its own.
ROOMS = ["kernels/base", "kernels", "tiers", "retrieval", "runtime", "tools", "tests"]
# What is installed: the command sees of it the library's face and the words.
PUBLIC_HEADERS = set(re.findall(
    r"\S+\.h", re.search(r"set\(THERMOCLINE_PUBLIC_HEADERS(.*?)\)",
                        (SOURCE / "cmake/library.cmake").read_text(), re.DOTALL)[1]))
COMMAND_SEES = {header for header in PUBLIC_HEADERS
                if header.startswith("kernels/base/")} | {"runtime/thermocline.h"}
CODE = {".h", ".cpp", ".cu", ".cuh"}
SCRIPTS = {".py", ".sh", ".cmake", ".in", ".conf"}
BUILT = {"kernels", "tiers", "retrieval", "runtime", "tools"}  # whatever is asked for
COLUMNS = 100
HEADERS_AT_ONCE = max(1, min(os.cpu_count() or 1, 4))


def files(suffixes):
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                            cwd=SOURCE, capture_output=True, text=True, check=False)
    names = listed.stdout.splitlines() if listed.returncode == 0 else [
        str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*")
        if not path.relative_to(SOURCE).parts[0].startswith(("build", "."))]
    return [pathlib.Path(name) for name in sorted(names)
            if pathlib.Path(name).suffix in suffixes and (SOURCE / name).is_file()]


def text_of(path):
    return (SOURCE / path).read_text(encoding="utf-8")


def room_of(path):
    for room in ROOMS:
        if str(path).startswith(room + "/"):
            return room
    return None


def includes(text):
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE)


def first_include(text):
    """What a source compiles before anything else, and so alone."""
    first = re.search(r'^\s*#\s*include\s+[<"]([^">]+)[">]', text, re.MULTILINE)
    return first and first[1]


def forbidden_include(path, included):
    """Why `path` may not include `included`, or None."""
    room, other = room_of(path), room_of(included)
    if included.endswith(".inc"):
        return None  # made by the build
    if not (SOURCE / included).is_file():
        return "not a path from the project's folder"
    if room is None or other is None:
        return None
    if ROOMS.index(other) > ROOMS.index(room):
        return f"{room} may not look at {other}"
    if room == "tools" and other != "tools" and included not in COMMAND_SEES:
        return "the command sees runtime/thermocline.h and the installed words of kernels/base only"
    return None


def without_strings(line):
    return re.sub(r'"(\\.|[^"\\])*"', '""', line)


class Rooms(unittest.TestCase):
    def test_look_left_only(self):
        wrong = [f"{path}: {included}: {reason}" for path in files(CODE)
                 for included in includes(text_of(path))
                 if (reason := forbidden_include(path, included))]
        self.assertEqual(wrong, [])

    def test_the_rule_can_fail(self):
        self.assertIsNotNone(forbidden_include(pathlib.Path("kernels/base/x.h"), "kernels/dense.h"))
        self.assertIsNotNone(
            forbidden_include(pathlib.Path("tools/thermocline/x.h"), "kernels/dense.h"))
        self.assertIsNotNone(
            forbidden_include(pathlib.Path("tools/thermocline/x.h"), "kernels/base/workers.h"))
        self.assertIsNone(
            forbidden_include(pathlib.Path("tools/thermocline/x.h"), "kernels/base/error.h"))
        self.assertIsNone(
            forbidden_include(pathlib.Path("runtime/x.h"), "kernels/base/error.h"))

    def test_every_source_is_in_a_room(self):
        homeless = [str(path) for path in files(CODE)
                    if room_of(path) is None and path.parts[0] != "examples"]
        self.assertEqual(homeless, [])


def needs_flags(text):
    """Headers for one instruction set say so with an #error or intrinsics."""
    return "immintrin.h" in text


class Headers(unittest.TestCase):
    def compile_alone(self, header):
        flags = ["-march=x86-64-v4"] if needs_flags(text_of(header)) else []
        with tempfile.NamedTemporaryFile("w", suffix=".cpp") as unit:
            unit.write(f'#include "{header}"\n#include "{header}"\n')
            unit.flush()
            done = subprocess.run(["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra",
                                   "-I", SOURCE, *flags, unit.name],
                                  capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else f"{header}:\n{done.stderr[:2000]}"

    def test_compile_alone(self):
        built = [path for path in files({".cpp"})
                 if path.parts[0] in BUILT and "cuda" not in path.parts]
        compiled = {first_include(text_of(path)) for path in built}
        headers = [path for path in files({".h"})
                   if "cuda" not in path.parts and str(path) not in compiled]
        self.assertGreater(len(compiled), 10)
        self.assertGreater(len(headers), 10)
        with concurrent.futures.ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            failures = [f for f in pool.map(self.compile_alone, headers) if f]
        self.assertEqual(failures, [])

    def test_begin_with_what_they_are_and_a_guard(self):
        wrong = [str(path) for path in files({".h"})
                 if not text_of(path).startswith("//") or "#pragma once" not in text_of(path)]
        self.assertEqual(wrong, [])


# A comment that is a statement: ends in ; or {, with code's punctuation before it.
COMMENTED_CODE = re.compile(r"^\s*//\s*(?:(?:const |auto |return |if \(|for \(|#include )[^.]*[;{]"
                            r"|[\w.\->]+\([^)]*\);)\s*$")


class Tidiness(unittest.TestCase):
    def offences(self, suffixes, wrong):
        return [f"{path}:{number}: {line.strip()[:80]}" for path in files(suffixes)
                for number, line in enumerate(text_of(path).split("\n"), 1) if wrong(line)]

    def test_no_tabs_and_no_blanks_at_the_end(self):
        wrong = self.offences(CODE | SCRIPTS, lambda line: "\t" in line or line != line.rstrip())
        self.assertEqual(wrong, [])

    def test_lines_fit(self):
        self.assertEqual(self.offences(CODE | {".py"}, lambda line: len(line) > COLUMNS), [])

    def test_no_notes_to_oneself(self):
        marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X:", "HA" + "CK:")
        wrong = self.offences(CODE | SCRIPTS, lambda line: any(m in line for m in marks))
        self.assertEqual(wrong, [])

    def test_no_code_in_comments(self):
        # The examples in the headers that are the library's face are meant to be read as code.
        shown = {"runtime/thermocline.h", "runtime/kv_cache.h"}
        wrong = [offence for offence in self.offences(CODE, COMMENTED_CODE.match)
                 if offence.split(":")[0] not in shown]
        self.assertEqual(wrong, [])

    def test_code_in_comments_is_seen(self):
        self.assertTrue(COMMENTED_CODE.match("  // const int x = 3;"))
        self.assertTrue(COMMENTED_CODE.match("// launch(stream, x);"))
        self.assertFalse(COMMENTED_CODE.match("// The rows of a step; at most 16."))

    def test_launches_name_their_stream(self):
        wrong = []
        for path in files({".cu", ".cuh"}):
            for launch in re.findall(r"<<<(.*?)>>>", text_of(path), re.DOTALL):
                depth, commas = 0, 0
                for c in launch:
                    depth += c in "([{"
                    depth -= c in ")]}"
                    commas += c == "," and depth == 0
                if commas != 3 or "stream" not in launch.rsplit(",", 1)[1]:
                    wrong.append(f"{path}: <<<{launch}>>>")
        self.assertEqual(wrong, [])

    def test_the_library_does_not_print_or_exit(self):
        call = re.compile(
            r"\b(std::)?(printf|puts|fputs|exit|_exit|quick_exit|abort|cout|cerr)\b\s*[(<]")
        allowed = {"kernels/base/error.h"}  # the check that stops a wrong program
        rooms = ("kernels/", "tiers/", "retrieval/", "runtime/")
        wrong = [f"{path}:{number}: {line.strip()}" for path in files({".h", ".cpp"})
                 if str(path).startswith(rooms) and str(path) not in allowed
                 for number, line in enumerate(text_of(path).split("\n"), 1)
                 if call.search(without_strings(line).split("//")[0])]
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=1)
