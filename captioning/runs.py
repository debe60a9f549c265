"""The folder of a training run, whose files the docstring of `train.py` describes."""

import dataclasses
from pathlib import Path

import numpy as np

from captioning.checkpoint import Checkpoint
from captioning.errors import InputError, log
from captioning.files import csv_bytes, read_tensors, tensor_bytes, write_bytes
from captioning.plots import best_epoch, history_figure, save_figure

STATE_FILE, BEST_FILE = "resume.safetensors", "best.safetensors"


class Run:
    """A training run and its folder: the history (one dict per epoch), and how it resumes.

    `checkpoint` is the model and what is saved with it; `variables` are all that an epoch starts
    from; a run is the same run if `settings` (JSON-ready) are equal but for `epochs`.
    """

    def __init__(self, folder: str, checkpoint: Checkpoint, variables: list, settings: dict):
        self.folder, self.history = Path(folder), []
        self.variables, self._checkpoint, self._settings = variables, checkpoint, settings

    def resume(self) -> None:
        """Restore the state after the last completed epoch, if there is one.

        InputError if the state is missing, damaged, or of a run with other settings.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            if len(list(self.folder.glob("epoch-*.safetensors"))) > 1:
                raise InputError(f"{path}: is gone, the run cannot resume; choose another --output")
            log("no completed epoch to resume from; starting with the first")
            return
        state, tensors = read_tensors(path, "train.py")
        theirs = state.get("settings", {})
        for name, ours in self._settings.items():
            if name != "epochs" and theirs.get(name) != ours:
                problem = f"the run has {name} = {theirs.get(name)}, asked for is {ours}"
                remedy = "resume with the same settings, or start in another folder"
                raise InputError(f"{path}: {problem}; {remedy}")
        for variable, value in zip(self.variables, tensors.values(), strict=True):
            variable.assign(value)
        self.history = state["history"]
        self._copy_best()
        log(f"resumed after epoch {len(self.history)}")

    def require_empty(self) -> None:
        """Raise InputError if the folder holds a run that a new one would mix with."""
        if any((self.folder / name).exists() for name in (STATE_FILE, BEST_FILE)):
            remedy = "add --resume to continue it, or choose another --output"
            raise InputError(f"{self.folder}: holds a run already; {remedy}")

    def save(self) -> None:
        """Write all files after an epoch; the state comes last, as the commit marker.

        The same data and settings give the same bytes, also when an epoch is repeated.
        """
        row = self.history[-1]
        scores = {name[4:]: row[name] for name in row if name.startswith("dev_")}
        facts = {"epoch": row["epoch"], "dev scores, greedy": scores, "history": self.history}
        checkpoint = dataclasses.replace(self._checkpoint, facts=self._checkpoint.facts | facts)
        checkpoint.save(self._epoch_file(row["epoch"]))
        self._copy_best()
        rows = [row, *(epoch.values() for epoch in self.history)]  # the names come first
        write_bytes(self.folder / "history.csv", csv_bytes(rows))
        save_figure(history_figure(self.history), self.folder / "curves.png")
        tensors = {f"{n:04}": np.asarray(v) for n, v in enumerate(self.variables)}
        state = {"settings": self._settings, "history": self.history}
        write_bytes(self.folder / STATE_FILE, tensor_bytes(tensors, state))

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03}.safetensors"

    def _copy_best(self) -> None:
        best = self._epoch_file(best_epoch(self.history))
        if best.exists():  # else it was removed, and BEST_FILE is its copy
            write_bytes(self.folder / BEST_FILE, best.read_bytes())
