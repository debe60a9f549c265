"""Make a trained checkpoint small enough to ship: `data/pretrained/`.

    python tools/pack_captioner.py weights/best.keras

Writes `captioner.keras`, the checkpoint with its weights rounded to 12 significant bits and
deflated, to be used in float32; and `training.json`, how the run was set up and went.
"""

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path

from compact import rounded, save_compact

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from captioning.checkpoint import Checkpoint  # noqa: E402
from captioning.files import write_json  # noqa: E402

TARGET = ROOT / "data" / "pretrained"
SIGNIFICANT_BITS = 12


def main() -> None:
    """Pack the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py")
    parser.add_argument("--target", type=Path, default=TARGET, help="folder (default: %(default)s)")
    options = parser.parse_args()

    checkpoint = Checkpoint.load(options.checkpoint, dtype="float32")
    for variable in checkpoint.model.weights:
        variable.assign(rounded(variable.numpy(), SIGNIFICANT_BITS))
    path = options.target / "captioner.keras"
    checkpoint.describe()
    save_compact(checkpoint.model, path)

    model = dataclasses.asdict(checkpoint.model.config)
    facts = {"model": model, "encoder": checkpoint.encoder, **checkpoint.facts}
    write_json(options.target / "training.json", facts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = checkpoint.model.count_params()
    print(f"{path}: {weights:,} weights, {path.stat().st_size / 1e6:.2f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
