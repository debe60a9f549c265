"""Every reader of untrusted files reads or rejects them, whatever bytes they hold."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_mutated_files_are_read_or_rejected():
    """In a process of its own: it limits its memory. `make fuzz` takes longer."""
    command = [sys.executable, ROOT / "tests" / "fuzz.py", "--inputs", "600", "--seed", "1"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
