#!/usr/bin/env python3
"""The programs that tools/gpu_check runs can be carried to a machine that has a driver and the C
library alone: they ask for nothing else."""
import pathlib
import re
import subprocess
import sys
import unittest

TESTS = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build").resolve() / "tests"
PROGRAMS = [TESTS / name for name in ("unit_cuda", "unit_device", "gpu_bench")]
C_LIBRARY = {"linux-vdso", "ld-linux-x86-64", "libc", "libm", "libdl", "librt", "libpthread"}


def libraries_of(program):
    shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return {re.split(r"\.so", pathlib.Path(line.split()[0]).name)[0]
            for line in shown.splitlines()}


class Carried(unittest.TestCase):
    def test_need_the_c_library_alone(self):
        for program in PROGRAMS:
            self.assertLessEqual(libraries_of(program), C_LIBRARY, program.name)

    def test_the_rule_can_fail(self):
        self.assertIn("libstdc++", libraries_of(TESTS / "unit_tiers"))


if __name__ == "__main__":
    missing = [program.name for program in PROGRAMS if not program.is_file()]
    if missing:
        print(f"skipped: {', '.join(missing)}: not built, which takes nvcc")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1])
