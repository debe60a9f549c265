"""Put a trained checkpoint in place as the shipped captioner.

    python data/pretrained/pack.py weights/best.safetensors

copies it to `captioner.safetensors` and writes `training.json` beside it: how it was trained.
"""

import argparse
import dataclasses
from pathlib import Path

from captioning.checkpoint import Checkpoint
from captioning.files import write_bytes, write_json

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Pack the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py")
    path = parser.parse_args().checkpoint
    checkpoint = Checkpoint.load(path)
    facts = {name: value for name, value in checkpoint.facts.items() if name != "training pictures"}
    config = dataclasses.asdict(checkpoint.model.config)
    write_json(HERE / "training.json", {"config": config, "encoder": checkpoint.encoder, **facts})
    write_bytes(HERE / "captioner.safetensors", path.read_bytes())


if __name__ == "__main__":
    main()
