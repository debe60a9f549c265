"""The commands `caption` and `caption-train` of an installation: the scripts, run as they stand."""

import runpy

from captioning.files import shipped


def caption() -> None:
    """Run `test.py`: caption photographs, or score a split."""
    runpy.run_path(str(shipped("test.py")), run_name="__main__")


def train() -> None:
    """Run `train.py`: fit the model on a prepared folder."""
    runpy.run_path(str(shipped("train.py")), run_name="__main__")
