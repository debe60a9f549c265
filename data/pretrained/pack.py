"""Put a trained checkpoint in place as the shipped captioner.

    python data/pretrained/pack.py weights/best.safetensors --data prepared \
        --min-words 7 --no-repeat-ngram 2

writes it to `captioner.safetensors` with what the dev split says of its beam search; to
`training.json` how it was trained; and to `familiar.safetensors` what its training images look
like: 256 centroids of their pooled features, by k-means on the unit sphere, and the cosine
similarity to the nearest that 99 % of the dev images have at least. Some seconds.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from captioning.checkpoint import Checkpoint
from captioning.config import count_or_zero
from captioning.features import FeatureCache, cache_folder
from captioning.files import json_bytes, tensor_bytes, write_bytes
from captioning.prepared import Prepared

CENTROIDS, ROUNDS = 256, 30


def main() -> None:
    """Pack the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train.py")
    parser.add_argument("--data", type=Path, required=True, help="its prepared folder")
    parser.add_argument("--min-words", type=count_or_zero, default=0)
    parser.add_argument("--no-repeat-ngram", type=count_or_zero, default=0)
    options = parser.parse_args()
    checkpoint = Checkpoint.load(options.checkpoint)
    search = {"min_words": options.min_words, "no_repeat_ngram": options.no_repeat_ngram}
    model = checkpoint.model
    model.config = dataclasses.replace(model.config, **search)
    checkpoint.save(HERE / "captioner.safetensors")
    facts = {name: value for name, value in checkpoint.facts.items() if name != "training pictures"}
    config = dataclasses.asdict(model.config)
    training = {"config": config, "encoder": checkpoint.encoder, **facts}
    write_bytes(HERE / "training.json", json_bytes(training))
    prepared = Prepared(options.data)
    cache = FeatureCache.open(cache_folder(options.data, checkpoint.encoder["name"]))
    train, dev = (unit(cache.pooled[cache.rows(prepared.images(s))]) for s in ("train", "dev"))
    centroids = find_centroids(train).astype(np.float16)
    similarity = float(np.percentile((dev @ unit(centroids).T).max(axis=1), 1))
    header = {"similarity": similarity, "encoder": checkpoint.encoder}
    write_bytes(HERE / "familiar.safetensors", tensor_bytes({"centroids": centroids}, header))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def find_centroids(rows: np.ndarray) -> np.ndarray:
    """Spherical k-means from rows drawn at random: (CENTROIDS, channels)."""
    centroids = rows[np.random.default_rng(0).permutation(len(rows))[:CENTROIDS]]
    for _ in range(ROUNDS):
        nearest = (rows @ centroids.T).argmax(axis=1)
        members = [rows[nearest == k] for k in range(CENTROIDS)]
        means = [m.mean(axis=0) if len(m) else centroids[k] for k, m in enumerate(members)]
        centroids = unit(np.stack(means))
    return centroids


if __name__ == "__main__":
    main()
