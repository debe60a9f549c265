"""Make a trained checkpoint small enough to ship: `data/pretrained/`.

    python tools/pack_captioner.py weights/best.keras
    python tools/pack_captioner.py weights/epoch-024.keras weights/epoch-028.keras

Writes `captioner.keras`, whose weights are the mean of the given checkpoints' (of one run; Izmailov
et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization"), rounded to 12
significant bits and deflated, in float32; and `training.json`, how the run was set up and went.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from compact import rounded, save_compact

from captioning.checkpoint import VERSION, Checkpoint
from captioning.files import write_json

TARGET = Path(__file__).resolve().parent.parent / "data" / "pretrained"
SIGNIFICANT_BITS = 12


def pack(paths: list[Path], target: Path) -> Path:
    """Average, round and save; the path of the file written."""
    checkpoints = [Checkpoint.load(path, "float32") for path in paths]
    packed = checkpoints[-1]
    for other in checkpoints[:-1]:
        same = (other.model.config, other.vocabulary.words, other.encoder)
        if same != (packed.model.config, packed.vocabulary.words, packed.encoder):
            raise SystemExit("checkpoints of different models have no mean")
    for variables in zip(*(c.model.weights for c in checkpoints), strict=True):
        mean = np.mean([variable.numpy() for variable in variables], axis=0, dtype=np.float64)
        variables[-1].assign(rounded(mean.astype(np.float32), SIGNIFICANT_BITS))
    facts = {key: packed.facts[key] for key in ("training", "history")}
    facts["epochs"] = [checkpoint.facts["epoch"] for checkpoint in checkpoints]
    packed.model.description = {
        "version": VERSION,
        "vocabulary": packed.vocabulary.to_json(),
        "encoder": packed.encoder,
        "facts": facts,
    }
    target.mkdir(parents=True, exist_ok=True)
    save_compact(packed.model, target / "captioner.keras")
    model = {**packed.model.get_config()["config"], "encoder": packed.encoder}
    write_json(target / "training.json", {"model": model, **facts})
    return target / "captioner.keras"


def main() -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, help="of one run, the last one leads")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder (default: %(default)s)")
    options = parser.parse_args()
    path = pack(options.checkpoints, options.target)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
