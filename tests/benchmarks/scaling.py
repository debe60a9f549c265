"""What data of other sizes cost: captions prepared, and updates of training.

    python -m tests.benchmarks.scaling                           8,000, 30,000 and 123,000 images
    python -m tests.benchmarks.scaling --images 2000 --only preparing

`preparing` draws a data set in COCO's layout (annotations, Karpathy's splits, empty image files)
and does with it what caption_extraction.ipynb does, without its plots. `training` times updates on
features of zeros, in files that take no room on the disk, and so leaves the reading of a disk out.
Each job runs in a process of its own. Preparing is told in seconds of the processor, since it
keeps one busy and no more: on a quiet machine, they are what the clock shows. Its peak memory is
all of its process; that of training is what was taken above the import of TensorFlow.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

ROOT = Path(__file__).resolve().parents[2]
SIZES = (8_000, 30_000, 123_000)
CAPTIONS_AN_IMAGE = 5
DIFFERENT_WORDS = 40_000  # to draw from; COCO's captions have some 30,000
ZIPF = 1.15  # exponent of the law by which words are drawn
MEAN_LENGTH, LENGTH_DEVIATION = 10.5, 2.4  # words a caption, COCO's
DIMENSION = 200  # of the word vectors, the notebook's
HELD_OUT = 5_000 / 123_000  # share of images in dev, and in test
UPDATES = 60  # of training that are timed
WARM_UP = 20  # updates before: graphs are made for each length of captions


# ---- made data ----------------------------------------------------------------------------------


def write_coco(folder: Path, images: int, seed: int = 0) -> Path:
    """Write annotations, Karpathy's file and empty images of a made data set in COCO's layout."""
    import numpy as np

    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    lengths = rng.integers(2, 10, DIFFERENT_WORDS)
    words = ["".join(rng.choice(letters[: 8 + n % 18], n)) for n in lengths]
    frequency = 1 / (np.arange(DIFFERENT_WORDS) + 2.7) ** ZIPF
    count = images * CAPTIONS_AN_IMAGE
    sizes = rng.normal(MEAN_LENGTH, LENGTH_DEVIATION, count).round().astype(int).clip(6, 50)
    drawn = rng.choice(DIFFERENT_WORDS, sizes.sum(), p=frequency / frequency.sum())
    ends = np.cumsum(sizes)
    held_out = max(1, round(HELD_OUT * images))
    karpathy, coco = [], {"train": ([], []), "val": ([], [])}
    for number in range(images):
        part = "train" if number < images * 2 // 3 else "val"
        place, name = f"{part}2014", f"COCO_{part}2014_{number:012}.jpg"
        sentences = []
        for caption in range(number * CAPTIONS_AN_IMAGE, (number + 1) * CAPTIONS_AN_IMAGE):
            tokens = [words[word] for word in drawn[ends[caption] - sizes[caption] : ends[caption]]]
            raw = " ".join(tokens).capitalize() + "."
            sentences.append({"tokens": tokens, "raw": raw, "imgid": number, "sentid": caption})
            coco[part][1].append({"image_id": number, "id": caption, "caption": raw})
        coco[part][0].append({"license": 1, "file_name": name, "height": 480, "id": number})
        splits = {images - number <= 2 * held_out: "val", images - number <= held_out: "test"}
        split = splits.get(True, "train" if part == "train" else "restval")
        entry = {"filepath": place, "filename": name, "imgid": number, "split": split}
        karpathy.append({**entry, "sentences": sentences, "cocoid": number})
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / name).touch()
    (folder / "annotations").mkdir()
    for part, (described, annotations) in coco.items():
        content = {"info": {}, "images": described, "licenses": [], "annotations": annotations}
        (folder / "annotations" / f"captions_{part}2014.json").write_text(json.dumps(content))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": karpathy, "dataset": "coco"}))
    return folder


# ---- jobs, each in a process of its own ---------------------------------------------------------


def preparing(folder: str, images: str, fasttext: str) -> dict:
    """What caption_extraction.ipynb does; seconds of the processor for its parts."""
    import numpy as np

    from captioning.dataset import read_dataset
    from captioning.embeddings import (
        WordVectors,
        embedding_matrix,
        train_fasttext,
        training_epochs,
    )
    from captioning.prepared import Prepared, write_captions, write_embeddings
    from captioning.vocabulary import SPECIALS, Vocabulary, tokenize

    seconds, started = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(time.process_time() - started, 2)
        started = time.process_time()

    data = read_dataset(Path(folder) / f"coco-{images}")
    lap("reading")
    tokens = {
        split: [tokenize(caption) for image in names for caption in data.captions[image]]
        for split, names in data.splits.items()
    }
    lap("words")
    vocabulary = Vocabulary.from_captions(tokens["train"])
    lap("vocabulary")
    facts = {"captions": sum(map(len, tokens.values())), "words": len(vocabulary)}
    if fasttext == "fasttext":
        epochs = training_epochs(len(tokens["train"]))
        vectors = train_fasttext(tokens["train"], DIMENSION, epochs)
        facts["epochs"] = epochs
    else:
        drawn = np.random.default_rng(0).normal(size=(len(vocabulary), DIMENSION))
        first = len(SPECIALS)
        vectors = WordVectors(
            DIMENSION,
            dict(zip(vocabulary.words[first:], drawn[first:].astype(np.float32), strict=True)),
        )
    lap("word vectors")
    prepared = Path(folder) / f"prepared-{images}"
    write_captions(prepared, data, vocabulary, {})
    write_embeddings(prepared, embedding_matrix(vocabulary, vectors), "made")
    lap("writing")
    read = Prepared(prepared)
    facts["tokens"] = len(read.tokens("train").ids)
    lap("reading back")
    return facts | {"seconds": seconds, "total": round(sum(seconds.values()), 1)}


def training(folder: str, images: str, attention: str) -> dict:
    """Captions a second of updates, and how long the plan of an epoch takes."""
    import itertools

    from tests.benchmarks.synthetic import make_trainer

    trainer = make_trainer(
        Path(folder) / f"features-{images}", Path(folder) / "run", attention, epochs=99
    )
    started = time.perf_counter()
    batches = trainer._plan(1)
    first = next(batches)
    plan = time.perf_counter() - started
    later = itertools.chain.from_iterable(trainer._plan(epoch) for epoch in itertools.count(2))
    batches = itertools.chain([first], batches, later)  # a small data set has few batches
    for features, words in itertools.islice(batches, WARM_UP):
        trainer._train_step(features, words)
    captions, started = 0, time.perf_counter()
    for features, words in itertools.islice(batches, UPDATES):
        float(trainer._train_step(features, words)[0])
        captions += int((words[..., 0] != 0).sum())
    seconds = time.perf_counter() - started
    return {
        "captions": trainer.train.caption_count,
        "captions a second": round(captions / seconds),
        "plan, seconds": round(plan, 2),
        "plan, share of an epoch": round(
            plan / (trainer.train.caption_count * seconds / captions), 4
        ),
    }


JOBS = {"preparing": preparing, "training": training}


def run_job(*job: object) -> dict:
    """Run a job in a process of its own; what it found."""
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "--job", *map(str, job)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return json.loads(done.stdout)


def peak_mb() -> float:
    """The largest size of this process so far, MB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    amounts = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return round(int(amounts[0]) * 1024 / 1e6) if amounts else 0.0


# ---- command line -------------------------------------------------------------------------------


def measure(images: int, parts: list[str], folder: Path) -> list[dict]:
    """All jobs at one size."""
    found = []
    if "preparing" in parts:
        started = time.perf_counter()
        write_coco(folder / f"coco-{images}", images)
        print(f"{images:,} images drawn in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for vectors in ("drawn", "fasttext"):
            facts = run_job("preparing", folder, images, vectors)
            found.append({"part": f"preparing, {vectors}", "images": images, **facts})
    if "training" in parts:
        from tests.benchmarks import memory, synthetic

        place = folder / f"features-{images}"
        synthetic.write_prepared(place, images, sparse=True)
        for attention in ("none", "grid"):
            facts = run_job("training", folder, images, attention)
            facts["taken_mb"] = round(memory.peak("training", place, attention, UPDATES))
            found.append({"part": f"training, {attention}", "images": images, **facts})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--images", type=int, nargs="+", default=SIZES)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        name, *arguments = options.job
        facts = JOBS[name](*arguments)
        print(json.dumps({**facts, "peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for images in options.images:
            for row in measure(images, options.only, Path(folder)):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
