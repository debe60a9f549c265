"""Peak memory of a process, measured from outside.

Counted is anonymous memory (RssAnon of /proc/PID/status). Pages of files, such as cached features,
are left out: the system takes them back when memory is short. Linux only.

    python -m tests.benchmarks.memory training FOLDER grid 20
    python -m tests.benchmarks.memory vectors FILE 2540

runs one of the jobs; `peak` starts it and watches.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AVAILABLE = Path("/proc/self/status").exists()
POLL_SECONDS = 0.005


def status_mb(field: str, process: int | str = "self") -> float:
    """A field of a process's status, such as RssAnon or VmHWM, in MB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def peak(*job: object) -> float:
    """Run a job in its own process: its peak above what its imports took, in MB."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", *map(str, job)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        baseline, highest = process.stdout.readline(), 0.0
        while process.poll() is None:
            highest = max(highest, status_mb("RssAnon", process.pid))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed; run it alone to see why")
    return highest - float(baseline)


def whole_peak(*arguments: object) -> float:
    """Run Python with these arguments: its peak of memory, pages of files included, in MB."""
    command, highest = [sys.executable, *map(str, arguments)], 0.0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            highest = max(highest, status_mb("VmHWM", process.pid))
            time.sleep(POLL_SECONDS)
    return highest


def _training(folder: str, attention: str, steps: str) -> None:
    """Run train.py for one epoch, cut after `steps`: training, dev scores, checkpoint."""
    import tensorflow  # noqa: F401 - its memory does not count

    print(status_mb("RssAnon"), flush=True)
    import train
    from captioning.batches import Split

    batches = Split.batches
    Split.batches = lambda self, *arguments: batches(self, *arguments)[: int(steps)]
    with tempfile.TemporaryDirectory() as output:
        options = ["--epochs", "1", "--attention", attention]
        train.main(train.parse_arguments(["--data", folder, "--output", output, *options]))


def _vectors(path: str, words: str) -> None:
    """Read the vectors of some words of a text file."""
    from captioning.extras.data.vectors import read_vectors

    print(status_mb("RssAnon"), flush=True)
    read_vectors(path, [f"word{row}" for row in range(int(words))])


if __name__ == "__main__":
    {"training": _training, "vectors": _vectors}[sys.argv[1]](*sys.argv[2:])
