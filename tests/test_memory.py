"""Too little memory: a line that says so where Python gets to say it, and whole files in any case.

A limit on address space is lowered step by step until nothing starts any more. Where TensorFlow or
the system's loader runs out, the process ends without a word of ours; where NumPy, Python or a
TensorFlow operation does, with status 2 and a message.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from captioning.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8 if int(os.environ.get("KILLS", "4")) > 4 else 2
LIMITED = """
import resource, runpy, sys
from captioning.cli import import_tensorflow
import_tensorflow()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[1]) * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TOO_LITTLE = """
import sys
from captioning.cli import run
def main():
    if sys.argv[1] == "numpy":
        import numpy as np
        np.ones(10**15)
    elif sys.argv[1] == "python":
        bytearray(10**15)
    else:
        import tensorflow as tf
        tf.zeros((10**6, 10**6)) + 1
run(main, "stopped")
"""


def run_python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("owner", ["numpy", "python", "tensorflow"])
def test_too_much_at_once_is_told(owner):
    done = run_python(TOO_LITTLE, owner)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: out of memory; ask for less")
    assert "Traceback" not in done.stderr


def test_with_ever_less_memory_no_file_is_torn(tiny_prepared, tmp_path):
    outcomes = {}
    for megabytes in np.geomspace(3000, 30, STEPS).astype(int):
        run = tmp_path / f"run{megabytes}"
        sizes = ["--epochs", "1", "--units", "16", "--heads", "2"]
        command = [ROOT / "train.py", "--data", tiny_prepared, "--output", run, *sizes]
        done = run_python(LIMITED, megabytes, *command)
        last = (done.stderr.strip().splitlines() or [""])[-1]
        outcomes[int(megabytes)] = (done.returncode, last)
        print(f"{megabytes} MB: status {done.returncode}: {last}")
        for path in run.glob("[!.]*.keras"):
            Checkpoint.load(path)
        assert done.returncode in (0, 2, -signal.SIGABRT, -signal.SIGSEGV)
        if done.returncode == 2:
            assert last.startswith("error: ")
    assert outcomes[3000][0] == 0
    assert outcomes[30][0] != 0
