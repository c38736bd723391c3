"""How the Python tests reach the built command and the models."""
import os
import pathlib
import subprocess
import sys

SOURCE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
BUILD = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "build").resolve()
COMMAND = BUILD / "bin" / "thermocline"
SKIPPED = 77
LICENSE_TEXT = pathlib.Path("/usr/share/common-licenses/GPL-3")


def skip(reason):
    print(reason)
    sys.exit(SKIPPED)


def need_command():
    if not COMMAND.is_file():
        skip(f"{COMMAND} is not built")


def need_model(name):
    folder = os.environ.get("THERMOCLINE_MODELS") or pathlib.Path(
        os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "thermocline/models"
    path = pathlib.Path(folder) / name
    if not path.is_file():
        skip(f"no {path}: run tools/fetch_models, or set THERMOCLINE_MODELS")
    return str(path)


def run(*words, stdin=b"", timeout=300, environment=None):
    """The finished command: returncode, stdout and stderr as bytes."""
    return subprocess.run([COMMAND, *map(str, words)], input=stdin, capture_output=True,
                          timeout=timeout, check=False, env=environment)


def start(*words):
    """The command on its way, with pipes."""
    return subprocess.Popen([COMMAND, *map(str, words)], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
