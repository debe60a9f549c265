"""Peak memory of a process, measured from outside.

Counted is anonymous memory (RssAnon of /proc/PID/status): what the process itself has taken.
Pages of files, such as cached features, are left out, for the system takes them back when memory
is short. Linux only.

    python -m tests.benchmarks.memory training FOLDER grid 20
    python -m tests.benchmarks.memory vectors FILE 2540

runs one of the jobs that are measured; `peak` starts it and watches.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.005


def available() -> bool:
    """Whether this system tells the anonymous memory of a process."""
    return Path("/proc/self/status").exists()


def anonymous_mb(process: int | str = "self") -> float:
    """Anonymous memory of a process in MB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    amounts = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(amounts[0]) * 1024 / 1e6 if amounts else 0.0


def peak(*job: object) -> float:
    """Run a job in a process of its own: its peak above what its imports took, in MB."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", *map(str, job)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process:
            baseline = process.stdout.readline()
            highest = 0.0
            while process.poll() is None:
                highest = max(highest, anonymous_mb(process.pid))
                time.sleep(POLL_SECONDS)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()}")
    return highest - float(baseline)


def _training(folder: str, attention: str, updates: str) -> None:
    """An epoch, cut after `updates`: training, dev scores, checkpoint."""
    import tensorflow  # noqa: F401  its memory is not ours

    print(anonymous_mb(), flush=True)
    from tests.benchmarks.synthetic import make_trainer

    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(Path(folder), Path(output), attention)
        whole = trainer._plan
        trainer._plan = lambda epoch: itertools.islice(whole(epoch), int(updates))
        next(trainer.epochs())


def _vectors(path: str, words: str) -> None:
    """Read the vectors of some words of a text file."""
    from captioning.extras.vectors import read_vectors

    print(anonymous_mb(), flush=True)
    read_vectors(path, [f"word{row}" for row in range(int(words))])


if __name__ == "__main__":
    {"training": _training, "vectors": _vectors}[sys.argv[1]](*sys.argv[2:])
