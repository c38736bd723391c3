#!/usr/bin/env python3
"""Our random reads beside fio's: one thread, the same sizes and depths, in turns.

Usage: fio_bench.py SOURCE BUILD [directory [rounds [MiB a measurement]]]

Prints the medians, and the ratios of a round's rates: ours with one read of 16 verified (fio looks
at none) and with each. fio reads through io_uring into registered memory, as we do. Skips (77)
without fio.
"""
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

SHAPES = [(size, depth) for size in (4096, 16384, 65536) for depth in (8, 32)]


def run(words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        sys.exit(f"{words[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def ours(bench, folder, mebibytes, size, depth):
    """MB/s of the ring, hardly and wholly verified: the third and the first way of the line."""
    for line in run([bench, folder, str(mebibytes), str(size), str(depth)]).splitlines():
        words = line.split()
        if words[:2] == [str(size), str(depth)]:
            if words[3] == "-":
                print("no io_uring here")
                sys.exit(77)
            medians = re.findall(r"(\d+) +\d+ % \(", line)
            return float(medians[2]), float(medians[0])
    sys.exit(f"{bench} measured nothing")


def fios(file, mebibytes, size, depth):
    said = run(["fio", "--name=reads", f"--filename={file}", "--size=64M", "--direct=1",
                "--rw=randread", "--norandommap", "--ioengine=io_uring", "--fixedbufs=1",
                f"--bs={size}", f"--iodepth={depth}", f"--io_size={3 * mebibytes}M",
                "--output-format=json"])
    return json.loads(said[said.index("{"):])["jobs"][0]["read"]["bw_bytes"] / 1e6


def main():
    bench = pathlib.Path(sys.argv[2], "tests", "io_bench")
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    mebibytes = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    if not shutil.which("fio"):
        print("fio is not installed")
        sys.exit(77)
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as folder:
        file = pathlib.Path(folder, "fio")
        fios(file, 1, 65536, 8)  # writes the file
        print(f"{'bytes':>6} {'depth':>5} {'fio':>7} {'ours':>7}  {'of fio':18}"
              f" {'verified':>8}  of fio (least-most), MB/s")
        for size, depth in SHAPES:
            rounds_of = [(*ours(bench, folder, mebibytes, size, depth),
                          fios(file, mebibytes, size, depth)) for _ in range(rounds)]
            text = f"{size:>6} {depth:>5} {statistics.median(r[2] for r in rounds_of):>7.0f}"
            for way in (0, 1):
                ratios = sorted(r[way] / r[2] for r in rounds_of)
                text += (f" {statistics.median(r[way] for r in rounds_of):>7.0f}"
                         f"  {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})  ")
            print(text.rstrip())


main()
