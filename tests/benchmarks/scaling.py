"""What data of other sizes cost: preparing captions, and training steps.

    python -m tests.benchmarks.scaling                           8,000, 30,000 and 123,000 images
    python -m tests.benchmarks.scaling --images 2000 --only preparing

`preparing` draws a data set of COCO's kind (Karpathy's file, empty image files) and does with it
what caption_extraction.ipynb does, without its plots. It is reported in CPU seconds, since it keeps
one core busy. `training` times steps on features of zeros, in files that take no disk space, so
reading from disk is not included. Each job runs in its own process; the peak memory of preparing
is that of the whole process, that of training is above the import of TensorFlow.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np

from captioning.batches import CAPTIONS_PER_IMAGE
from captioning.datasets import read_dataset
from captioning.embeddings import WordVectors, embedding_matrix, train_fasttext, training_epochs
from captioning.prepared import write_captions, write_embeddings
from captioning.vocabulary import SPECIALS, Vocabulary, tokenize
from tests.benchmarks import memory

SIZES = (8_000, 30_000, 123_000)
DIFFERENT_WORDS = 40_000  # to draw from; COCO's captions have some 30,000
ZIPF = 1.15  # exponent of the law by which words are drawn
MEAN_LENGTH, LENGTH_DEVIATION = 10.5, 2.4  # words per caption, COCO's
DIMENSION = 200  # of the word vectors, the notebook's
HELD_OUT = 5_000 / 123_000  # fraction of images in dev, and in test
STEPS, WARM_UP = 60, 20  # timed, and before: a graph is traced for each length of captions


def write_coco(folder: Path, images: int) -> None:
    """Write Karpathy's file and empty images of a drawn data set."""
    rng, count = np.random.default_rng(0), images * CAPTIONS_PER_IMAGE
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    lengths = rng.integers(2, 10, DIFFERENT_WORDS)
    words = np.array(["".join(rng.choice(letters[: 8 + n % 18], n)) for n in lengths])
    frequency = 1 / (np.arange(DIFFERENT_WORDS) + 2.7) ** ZIPF
    sizes = rng.normal(MEAN_LENGTH, LENGTH_DEVIATION, count).round().astype(int).clip(6, 50)
    drawn = rng.choice(words, sizes.sum(), p=frequency / frequency.sum())
    captions = map(list, np.split(drawn, np.cumsum(sizes)[:-1]))
    held_out = max(1, round(HELD_OUT * images))
    splits = ["train"] * (images - 2 * held_out) + ["val"] * held_out + ["test"] * held_out
    (folder / "val2014").mkdir(parents=True)
    entries = []
    for number, split in enumerate(splits):
        name = f"COCO_val2014_{number:012}.jpg"
        (folder / "val2014" / name).touch()
        tokens = [next(captions) for _ in range(CAPTIONS_PER_IMAGE)]
        sentences = [{"tokens": t, "raw": " ".join(t).capitalize() + "."} for t in tokens]
        entry = {"filepath": "val2014", "filename": name, "imgid": number, "split": split}
        entries.append({**entry, "sentences": sentences})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))


# --- jobs, each in its own process ----------------------------------------------------------------


def preparing(folder: Path, images: int, fasttext: bool) -> dict:
    """What caption_extraction.ipynb does; CPU seconds of its parts."""
    seconds, started = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(time.process_time() - started, 2)
        started = time.process_time()

    data = read_dataset(folder / f"coco-{images}")
    lap("reading")
    tokens = {
        split: [tokenize(caption) for image in names for caption in data.captions[image]]
        for split, names in data.splits.items()
    }
    vocabulary = Vocabulary.from_captions(tokens["train"])
    lap("words")
    if fasttext:
        vectors = train_fasttext(tokens["train"], DIMENSION, training_epochs(len(tokens["train"])))
    else:
        words = vocabulary.words[len(SPECIALS) :]
        drawn = np.random.default_rng(0).normal(size=(len(words), DIMENSION))
        vectors = WordVectors(DIMENSION, dict(zip(words, drawn, strict=True)))
    lap("word vectors")
    prepared = folder / f"prepared-{images}"
    write_captions(prepared, data, vocabulary, 30, {})
    write_embeddings(prepared, embedding_matrix(vocabulary, vectors), "drawn")
    lap("writing")
    facts = {"captions": sum(map(len, tokens.values())), "words": len(vocabulary)}
    return facts | {"CPU seconds": seconds, "peak, MB": round(memory.status_mb("VmHWM"))}


def training(folder: Path, attention: str) -> dict:
    """Captions per second of training steps."""
    from tests.benchmarks.synthetic import Training

    run = Training(folder, attention)
    run.train(WARM_UP)
    speed = round(run.train(STEPS))
    return {"captions": run.split.caption_count, "captions per second": speed}


def in_new_process(job, *arguments) -> dict:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


def measure(images: int, parts: list[str], folder: Path) -> Iterator[dict]:
    if "preparing" in parts:
        write_coco(folder / f"coco-{images}", images)
        for fasttext in (False, True):
            facts = in_new_process(preparing, folder, images, fasttext)
            yield {"part": "preparing", "images": images, "fasttext": fasttext, **facts}
    if "training" in parts:
        from tests.benchmarks import synthetic

        place = synthetic.write_prepared(folder / f"features-{images}", images, sparse=True)
        for attention in ("none", "grid"):
            facts = in_new_process(training, place, attention)
            facts["peak, MB"] = round(memory.peak("training", place, attention, STEPS))
            yield {"part": "training", "images": images, "attention": attention, **facts}


def main() -> None:
    parts = ("preparing", "training")
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--images", type=int, nargs="+", default=SIZES)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for images in options.images:
            for row in measure(images, options.only, Path(folder)):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
