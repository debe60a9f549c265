"""The folder of a training run: checkpoints, history, and the state that resumes it.

epoch-NNN.safetensors   one self-contained checkpoint per epoch
best.safetensors        a copy of the one with the highest CIDEr-D on dev
history.csv             one row per epoch
curves.png              the history, drawn
resume.safetensors      weights and optimiser state after the last epoch; written last
"""

import csv
import dataclasses
import io
import os
from pathlib import Path

import numpy as np

from captioning.checkpoint import Checkpoint
from captioning.errors import InputError, log
from captioning.files import read_tensors, tensor_bytes, write_bytes, write_text
from captioning.plots import plot_history

STATE_FILE, HISTORY_FILE = "resume.safetensors", "history.csv"
BEST_FILE = "best.safetensors"


class Run:
    """A training run and its folder.

    Args:
        folder: where its files are.
        checkpoint: the model, and what is saved with it.
        variables: all that an epoch starts from: weights and optimiser state.
        settings: what must be equal for a run to be the same run; JSON-ready.
    """

    def __init__(
        self, folder: str | os.PathLike, checkpoint: Checkpoint, variables, settings: dict
    ):
        """Start with an empty history; see `resume`."""
        self.folder = Path(folder)
        self.history: list[dict] = []
        self._checkpoint, self.variables, self._settings = checkpoint, variables, settings

    @property
    def best_epoch(self) -> int:
        """The epoch with the highest CIDEr-D on dev, of equals that with the lowest loss."""
        best = max(self.history, key=lambda row: (row["dev_CIDEr-D"], -row["dev_loss"]))
        return best["epoch"]

    def resume(self) -> None:
        """Restore the state after the last completed epoch; nothing if no epoch was completed.

        Raises:
            InputError: the state is missing, damaged, or of a run with other settings.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            if len(list(self.folder.glob("epoch-*.safetensors"))) > 1:
                raise InputError(f"{path}: is gone, the run cannot resume; choose another --output")
            log("no completed epoch to resume from; starting with the first")
            return
        state, tensors = read_tensors(path, "train.py")
        for name, ours in self._settings.items():
            if name != "epochs" and state["settings"].get(name) != ours:
                raise InputError(
                    f"{path}: the run has {name} = {state['settings'].get(name)}, asked for is "
                    f"{ours}; resume with the same settings, or start in another folder"
                )
        for variable, value in zip(self.variables, tensors.values(), strict=True):
            variable.assign(value)
        self.history = state["history"]
        log(f"resumed after epoch {len(self.history)}")
        if not (self.folder / BEST_FILE).exists():
            self._copy_best()

    def require_empty(self) -> None:
        """Raise InputError if the folder holds a run that a new one would mix with."""
        names = (STATE_FILE, HISTORY_FILE, BEST_FILE)
        if any((self.folder / name).exists() for name in names):
            raise InputError(
                f"{self.folder}: holds a run already; add --resume to continue it, or choose "
                "another --output"
            )

    def save(self) -> None:
        """Write all files after an epoch, the last of the history; the state comes last."""
        row = self.history[-1]
        scores = {name[4:]: row[name] for name in row if name.startswith("dev_")}
        facts = {
            **self._checkpoint.facts,
            "epoch": row["epoch"],
            "dev scores, greedy": scores,
            "history": self.history,
        }
        checkpoint = dataclasses.replace(self._checkpoint, facts=facts)
        checkpoint.save(self._epoch_file(row["epoch"]))
        if self.best_epoch == row["epoch"]:
            self._copy_best()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row))
        writer.writeheader()
        writer.writerows(self.history)
        write_text(self.folder / HISTORY_FILE, text.getvalue())
        plot_history(self.history, self.folder / "curves.png")
        tensors = {f"{n:04}": np.asarray(v) for n, v in enumerate(self.variables)}
        state = {"settings": self._settings, "history": self.history}
        write_bytes(self.folder / STATE_FILE, tensor_bytes(tensors, state))

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03}.safetensors"

    def _copy_best(self) -> None:
        """Copy the checkpoint of the best epoch: saving it again could give other bytes."""
        write_bytes(self.folder / BEST_FILE, self._epoch_file(self.best_epoch).read_bytes())
