"""Every reader of a stranger's file reads it or refuses it, whatever bytes it holds.

FUZZ_INPUTS and SEED in the environment set how many inputs and which: make fuzz.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import TARGETS, mutated

ROOT = Path(__file__).resolve().parent.parent
INPUTS = int(os.environ.get("FUZZ_INPUTS", "20000"))
SEED = os.environ.get("SEED", "0")


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files_are_read_or_refused(target):
    """In a process of its own, for a limit on memory and for what ends a process."""
    share = round(TARGETS[target][3] * INPUTS)
    command = [sys.executable, ROOT / "tests" / "fuzz.py", "--target", target]
    command += ["--inputs", str(share), "--seed", SEED]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout[-5000:])
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"{target}: {share:,} inputs" in done.stdout


def test_enough_inputs_are_tried():
    assert sum(share for *_, share in TARGETS.values()) == pytest.approx(1)
    assert INPUTS >= 20_000


def test_a_reader_that_fails_is_noticed(tmp_path, monkeypatch, capsys):
    import fuzz

    def fails(path):
        if b"\xff" in path.read_bytes():
            raise KeyError("not an InputError")

    monkeypatch.setattr(fuzz, "ROOT", tmp_path)
    monkeypatch.setitem(fuzz.TARGETS, "failing", (lambda: [b"abc"], mutated, fails, 0))
    (tmp_path / "work").mkdir()
    failed = fuzz.fuzz("failing", 300, 0, tmp_path / "work")
    assert failed > 0
    assert len(list((tmp_path / "build" / "fuzz").iterdir())) == failed
    assert "KeyError" in capsys.readouterr().out
