"""The commands `caption` and `caption-train` of an installation: the scripts, run as they stand."""

from captioning.files import shipped


def caption() -> None:
    """Run `test.py`: caption photographs, or score a split."""
    _run("test.py")


def train() -> None:
    """Run `train.py`: fit the model on a prepared folder."""
    _run("train.py")


def _run(script: str) -> None:
    """Run a script under the name of the command, which runpy would replace by the script's."""
    path = shipped(script)
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), {"__name__": "__main__"})
