#!/usr/bin/env python3
"""How much of its decode rate the command keeps while another process wants a processor.

    busy_decode_bench.py SOURCE BUILD [MODEL [ROUNDS]]

Rounds of `sweep -n 32` alone and beside one process that computes without end, in turn: the medians
and their ratio, which fails below 0.4. On two processors a fair half of one is lost: 0.75 would be
the most. Without MODEL a small network of the repository's is decoded.
"""
import csv
import io
import pathlib
import statistics
import subprocess
import sys

LEAST_KEPT = 0.4


def rate(build, model):
    printed = subprocess.run(
        [build / "bin" / "thermocline", "sweep", "-m", model, "-p", "0", "-n", "32", "-d", "0",
         "-r", "3", "-t", "2", "--progress", "none", "-o", "csv"],
        capture_output=True, text=True, check=True, timeout=300).stdout
    return float(next(csv.DictReader(io.StringIO(printed)))["tokens_per_s"])


def main():
    if not 3 <= len(sys.argv) <= 5:
        print("usage: " + __doc__.splitlines()[2].strip(), file=sys.stderr)
        return 2
    source, build = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    model = sys.argv[3] if len(sys.argv) > 3 else source / "tests/golden/tiny/llama_mixed.gguf"
    # Of so small a network a rate is that of some milliseconds: one time slice may take all of it.
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 9
    alone, beside = [], []
    for _ in range(rounds):
        alone.append(rate(build, model))
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            try:
                beside.append(rate(build, model))
            finally:
                neighbour.kill()
    idle, busy = statistics.median(alone), statistics.median(beside)
    print(f"alone {idle:.1f} tokens/s ({min(alone):.1f} to {max(alone):.1f}), beside a busy one "
          f"{busy:.1f} ({min(beside):.1f} to {max(beside):.1f}): {busy / idle:.2f} of it")
    return 0 if busy >= LEAST_KEPT * idle else 1


if __name__ == "__main__":
    sys.exit(main())
