"""Too little memory: one line where Python gets to print it, and complete files in any case.

A limit on address space is lowered until nothing starts any more. Where TensorFlow or the system
runs out, the process ends without a message of ours.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from captioning.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
LIMITED = """
import resource, runpy, sys
from captioning.startup import import_tensorflow
import_tensorflow()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[1]) * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TOO_LITTLE = """
import sys
from captioning.errors import run
def main():
    if sys.argv[1] == "numpy":
        import numpy as np
        np.ones(10**15)
    else:
        import tensorflow as tf
        tf.zeros((10**6, 10**6)) + 1
run(main, "stopped")
"""


def run_python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("owner", ["numpy", "tensorflow"])
def test_too_much_at_once_is_one_line(owner):
    done = run_python(TOO_LITTLE, owner)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: out of memory; use a smaller")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("megabytes", [3000, 300, 30])
def test_with_little_memory_files_are_complete(tiny_prepared, tmp_path, megabytes):
    sizes = ["--epochs", "1", "--units", "16", "--heads", "2"]
    command = [ROOT / "train.py", "--data", tiny_prepared, "--output", tmp_path / "run", *sizes]
    done = run_python(LIMITED, megabytes, *command)
    for path in (tmp_path / "run").glob("[!.]*.safetensors"):
        if path.name != "resume.safetensors":
            Checkpoint.load(path)
    assert done.returncode in (0, 2, -signal.SIGABRT, -signal.SIGSEGV)
    assert done.returncode == 0 or megabytes < 3000
    if done.returncode == 2:
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
