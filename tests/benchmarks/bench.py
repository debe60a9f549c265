"""Measure this project against the usual way and against the machine's limits.

    make bench               all rows, on a quiet machine
    make bench QUICK=1       under five minutes: fewer repetitions, smaller data, no ResNet50
    python -m tests.benchmarks.bench --only decoding start

docs/performance.md explains the rows. The table goes to stdout, all figures to a JSON file.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np

from captioning.captioner import Captioner
from captioning.config import LENGTH_PENALTY, Config
from captioning.embeddings import read_vectors
from captioning.encoders import BUNDLED, Encoder, load_encoder
from captioning.features import BATCH_SIZE, FeatureCache, cache_folder, extract_features
from captioning.images import load_image
from captioning.model import MergeDecoder
from captioning.steps import CLIP_NORM
from tests.benchmarks import limits, memory, synthetic, usual
from tests.benchmarks.measuring import Row, alternate, faster, median_ms, ratios, seconds, table

MATRIX_SECONDS = 0.3  # for each measurement of a matrix product
PREFIXES = {"none": 1536, "grid": 384}  # examples per step of the usual way; grids need memory
NAMES = {"none": "pooled", "grid": "grid"}


class Bench:
    """What the sections share: sizes, and data that is made on first use, in `folder`."""

    def __init__(self, folder: Path, quick: bool):
        """Settle the sizes; `quick` means fewer repetitions and smaller data."""
        self.folder, self.quick = folder, quick
        self.repetitions = 3 if quick else 9
        self.steps = 6 if quick else 20  # of our training, per measurement
        self.teaching = 60 if quick else 150  # training steps before a model is decoded

    @cached_property
    def encoders(self) -> list[Encoder]:
        """The bundled encoder and, if there is time, ResNet50 with random weights."""
        if self.quick:
            return [load_encoder(BUNDLED)]
        path = self.folder / "resnet50.weights.h5"
        keras.applications.ResNet50(include_top=False, weights=None).save_weights(path)
        return [load_encoder(BUNDLED), load_encoder("resnet50", weights=path)]

    @cache  # noqa: B019 - one instance per process
    def prepared(self, encoder: int = 0) -> Path:
        """Captions and features of 1,000 drawn images, as if of one of the encoders."""
        description = self.encoders[encoder].to_json()
        folder = self.folder / f"prepared-{description['name']}"
        return synthetic.write_prepared(folder, 1000 - synthetic.DEV_IMAGES, description)

    @cached_property
    def photographs(self) -> list[Path]:
        """JPEGs of Flickr8k's size."""
        sources = sorted(p for p in memory.ROOT.glob("images/*.jpg") if p.stem != "captioned")
        count = 64 if self.quick else 256
        return synthetic.write_photographs(self.folder / "photographs", sources, count)

    @cache  # noqa: B019
    def captioner(self, attention: str, encoder: int = 0) -> Captioner:
        """A model that has learnt how long captions are, for one of the encoders."""
        settings = {"learning_rate": 1e-3, "label_smoothing": 0.0, "dropout": 0.3}
        run = synthetic.Training(self.prepared(encoder), attention, **settings)
        for batch in itertools.islice(run.batches(), self.teaching):
            run.step(batch)
        captioner = Captioner(run.checkpoint)
        captioner.encoder = self.encoders[encoder]
        return captioner


# --- training -------------------------------------------------------------------------------------


def training(bench: Bench) -> Iterator[Row]:
    """Captions per second against prefix expansion; useful arithmetic against the peak."""
    for attention, name in NAMES.items():
        runs = {
            dtype: synthetic.Training(bench.prepared(), attention, bfloat16=dtype == "bfloat16")
            for dtype in ("float32", "bfloat16")
        }
        jobs = {"usual": prefix_job(runs["float32"], PREFIXES[attention])}
        arithmetic = {}  # GFLOP/s of each round, the warm-up first
        for dtype, run in runs.items():
            arithmetic[dtype] = []
            jobs[dtype] = step_job(run, bench.steps, arithmetic[dtype])
            jobs[f"{dtype} peak"] = peak_job(run, dtype)
        found = alternate(jobs, bench.repetitions)
        note = f"usual: {PREFIXES[attention]} prefixes per step, in float32"
        for dtype, target in (("float32", 10), ("bfloat16", 15)):
            title = f"training, {name}, {dtype}"
            yield faster(title, "captions/s", found, target, ours=dtype, note=note)
            useful, peak = arithmetic[dtype][1:], found[f"{dtype} peak"]
            percent = [100 * value for value in ratios(useful, peak)]
            title += ", useful arithmetic"
            yield Row(title, "GFLOP/s", useful, percent, 80, scale="% of the peak", usual=peak)


def prefix_job(run: synthetic.Training, rows: int):
    """Captions per second of the usual way: one step on `rows` prefixes of training captions."""
    config, tokens = run.config, run.split.tokens
    captions = [tokens[number] for number in range(len(tokens))]
    rows_per_caption = np.mean([len(caption) - 1 for caption in captions])
    longest = max(map(len, captions)) - 1
    model = usual.prefix_model(run.model, longest)
    optimizer = keras.optimizers.AdamW(config.learning_rate, 0.0, global_clipnorm=CLIP_NORM)
    usual.compile_model(model, optimizer, config.label_smoothing)
    rng = np.random.default_rng(0)

    def step() -> None:
        chosen = rng.permutation(len(captions))[: int(1.5 * rows / rows_per_caption)]
        words, targets, owners = usual.expand([captions[number] for number in chosen], longest)
        images = tokens.images[chosen[owners[:rows]]]
        features = run.split.features(images, np.zeros(rows, bool))
        usual.train_on_prefixes(model, words[:rows], features, targets[:rows])

    return lambda: rows / rows_per_caption / seconds(step)


def step_job(run: synthetic.Training, steps: int, arithmetic: list[float]):
    """Captions per second of this project's training; appends useful GFLOP/s to `arithmetic`."""
    batches = run.batches()

    def measure() -> float:
        chosen, words = list(itertools.islice(batches, steps)), []
        taken = seconds(lambda: words.extend(map(run.step, chosen)))
        flops = (
            limits.step_flops(run.model, len(batch.images), count)
            for batch, count in zip(chosen, words, strict=True)
        )
        arithmetic.append(sum(flops) / taken / 1e9)
        return sum(np.count_nonzero(batch.words[:, :, 0]) for batch in chosen) / taken

    return measure


def peak_job(run: synthetic.Training, dtype: str):
    """GFLOP/s of the model's matrix product that is fastest here, measured again on each call."""
    batch = run.config.batch_size
    images = batch // synthetic.CAPTIONS_PER_IMAGE
    products = limits.layer_products(run.model, images, words=12 * batch)
    speeds = limits.peak(products, dtype, MATRIX_SECONDS)
    best = max(speeds, key=speeds.get)
    return lambda: limits.peak({best: products[best]}, dtype, MATRIX_SECONDS)[best]


# --- captions -------------------------------------------------------------------------------------


def photograph(bench: Bench) -> Iterator[Row]:
    """A greedy caption of one photograph, the model loaded: CNN and decoding."""
    for number, attention in itertools.product(range(len(bench.encoders)), NAMES):
        yield from one_photograph(bench, number, attention)


def one_photograph(bench: Bench, number: int, attention: str) -> Iterator[Row]:
    """The rows of one encoder and one kind of model."""
    encoder, captioner = bench.encoders[number], bench.captioner(attention, number)
    pixels = load_image(bench.photographs[0], encoder.image_size)
    model, max_words = captioner.model, captioner.model.config.max_words
    decoder = usual.prefix_model(model, max_words + 1)
    cnn = usual.cnn_for(encoder, model.feature_shape)

    def by_word():
        return usual.caption_with_a_cnn_pass_per_word(cnn, decoder, pixels, max_words)

    def ours():
        return captioner.caption_features(captioner.encode([pixels]), beam_width=1)

    found = alternate(
        {
            "usual": lambda: 1000 * seconds(by_word),
            "ours": lambda: median_ms(ours),
            "bare": lambda: median_ms(lambda: encoder.encode(pixels[None])),
        },
        bench.repetitions,
    )
    title = f"one photograph, {encoder.name}, {NAMES[attention]}"
    speed_up = ratios(found["usual"], found["ours"])
    note = f"a caption of {len(by_word()) - 1} words"
    yield Row(title, "ms", found["ours"], speed_up, 20, usual=found["usual"], note=note)
    title += ", against one bare CNN pass"
    longer = ratios(found["ours"], found["bare"])
    yield Row(title, "ms", found["ours"], longer, 1.15, at_least=False, usual=found["bare"])


def decoding(bench: Bench) -> Iterator[Row]:
    """Captions per second from cached features of 1,000 images."""
    features = FeatureCache.open(cache_folder(bench.prepared(), BUNDLED))
    for attention, target in (("none", 1500), ("grid", 600)):
        captioner = bench.captioner(attention)

        def search(width, captioner=captioner):
            return captioner.caption_cached(features, features.images, width, LENGTH_PENALTY)

        jobs = {
            name: lambda width=width: len(features.images) / seconds(lambda: search(width))  # noqa: B023
            for name, width in (("beam", 3), ("greedy", 1))
        }
        found = alternate(jobs, bench.repetitions)
        lengths = [len(caption.split()) for caption in search(1)]
        note = f"captions of {np.mean(lengths):.1f} words, the longest of {max(lengths)}"
        title, unit, greedy = f"decoding, {NAMES[attention]}", "captions/s", found["greedy"]
        yield Row(f"{title}, greedy", unit, greedy, greedy, target, scale=unit, note=note)
        slower = ratios(greedy, found["beam"])
        title += ", beam 3 against greedy: times slower"
        yield Row(title, unit, found["beam"], slower, 4, at_least=False, usual=greedy)


# --- features -------------------------------------------------------------------------------------


def extraction(bench: Bench) -> Iterator[Row]:
    """Images per second from JPEG files to the cache, and how busy the CNN is meanwhile."""
    for encoder in bench.encoders:
        yield from one_extraction(bench, encoder)


def one_extraction(bench: Bench, encoder: Encoder) -> Iterator[Row]:
    """The rows of one encoder."""
    cnn = usual.cnn_for(encoder, encoder.grid_shape[-1:])
    paths, busy, numbers = bench.photographs, [], itertools.count()
    folder, names = paths[0].parent, [path.name for path in paths]

    def ours():
        target = bench.folder / f"{encoder.name}-{next(numbers)}"
        with counting_cnn_time() as in_cnn, contextlib.redirect_stderr(None):
            taken = seconds(lambda: extract_features(target, folder, names, encoder))
        busy.append(100 * sum(in_cnn) / taken)
        return len(paths) / taken

    def one_by_one():
        some = paths[:12]
        return len(some) / seconds(lambda: usual.extract_one_by_one(cnn, some, encoder.image_size))

    found = alternate({"usual": one_by_one, "ours": ours}, bench.repetitions)
    yield faster(f"extraction, {encoder.name}", "images/s", found, 3)
    title, unit = f"extraction, {encoder.name}, CNN busy", "% of the time"
    yield Row(title, unit, busy[1:], busy[1:], 90, scale=unit)


@contextlib.contextmanager
def counting_cnn_time() -> Iterator[list[float]]:
    """Yield a list to which the seconds of every CNN pass are appended."""
    noted, encode = [], Encoder.encode

    def timed(*arguments):
        before = time.perf_counter()
        grid = encode(*arguments)
        noted.append(time.perf_counter() - before)
        return grid

    with mock.patch.object(Encoder, "encode", timed):
        yield noted


def pytorch(bench: Bench) -> Iterator[Row]:
    """The same networks in PyTorch, on the same pictures in memory."""
    import torch

    from tests.benchmarks.torch_networks import network

    for encoder in bench.encoders:
        forward = network(encoder.name)
        paths = bench.photographs[:BATCH_SIZE]
        pixels = np.stack([load_image(path, encoder.image_size) for path in paths])
        tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        jobs = {
            "usual": lambda forward=forward, tensor=tensor: forward(tensor),
            "ours": lambda encoder=encoder, pixels=pixels: encoder.encode(pixels),
        }
        rates = {
            name: lambda work=work: 1000 * BATCH_SIZE / median_ms(work)
            for name, work in jobs.items()
        }
        with torch.inference_mode():
            found = alternate(rates, bench.repetitions)
        yield faster(f"{encoder.name} against PyTorch", "images/s", found, 1)


# --- memory, start, word vectors ------------------------------------------------------------------


def training_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of an epoch of training above that of importing TensorFlow."""
    for attention, name in NAMES.items():
        peaks = [
            memory.peak("training", bench.prepared(), attention, bench.steps) / 1000
            for _ in range(1 if bench.quick else 3)
        ]
        title = f"memory of training, {name}"
        yield Row(title, "GB", peaks, peaks, 1.5, at_least=False, scale="GB")


def memory_by_size(bench: Bench) -> Iterator[Row]:
    """Peak memory of training on 8,000 and on 120,000 images."""
    peaks = {}
    for images in (8_000, 120_000):
        folder = bench.folder / f"prepared-{images}"
        synthetic.write_prepared(folder, images, sparse=True)
        peaks[images] = [memory.peak("training", folder, "grid", 20) for _ in range(3)]
    small, large = peaks.values()
    more = [b - a for a, b in zip(small, large, strict=True)]
    title = "memory of training, grid, 120,000 images less 8,000 images"
    yield Row(title, "MB", large, more, 200, at_least=False, scale="MB", usual=small)


def vectors_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of reading a `.vec` of 20,000 rows and of 80,000."""
    peaks = []
    for rows in (20_000, 80_000):
        path = bench.folder / f"vectors-{rows}.vec"
        synthetic.write_vectors(path, rows, synthetic.EMBEDDING_SIZE)
        peaks.append([memory.peak("vectors", path, synthetic.WORDS) for _ in range(3)])
    more = [b - a for a, b in zip(*peaks, strict=True)]
    title = "memory of reading a .vec, four times the rows"
    yield Row(title, "MB", peaks[1], more, 10, at_least=False, scale="MB more", usual=peaks[0])


def start(bench: Bench) -> Iterator[Row]:
    """`test.py --image` as a process, against importing TensorFlow and loading the encoder."""
    code = "import tensorflow; from captioning.encoders import BUNDLED, load_encoder; "
    commands = {
        "usual": ["-c", f"{code}load_encoder(BUNDLED)"],
        "ours": ["test.py", "--image", str(bench.photographs[0])],
    }

    def run(command):
        subprocess.run([sys.executable, *command], cwd=memory.ROOT, check=True, capture_output=True)

    jobs = {
        name: lambda command=command: seconds(lambda: run(command))
        for name, command in commands.items()
    }
    found = alternate(jobs, bench.repetitions)
    longer = ratios(found["ours"], found["usual"])
    title = "test.py --image, cold, against TensorFlow and the encoder"
    yield Row(title, "s", found["ours"], longer, 1.5, at_least=False, usual=found["usual"])


def vectors(bench: Bench) -> Iterator[Row]:
    """Reading the vectors of a vocabulary from a `.vec`, against gensim."""
    from gensim.models import KeyedVectors

    rows = 20_000 if bench.quick else 100_000
    path = bench.folder / "vectors.vec"
    words = synthetic.write_vectors(path, rows, synthetic.EMBEDDING_SIZE)
    words = words[:: max(1, rows // synthetic.WORDS)]
    jobs = {
        "usual": lambda: rows / seconds(lambda: KeyedVectors.load_word2vec_format(path)),
        "ours": lambda: rows / seconds(lambda: read_vectors(path, words)),
    }
    found = alternate(jobs, bench.repetitions, warm_up=False)
    yield faster(f".vec of {rows:,} rows", "rows/s", found, 5)


# --- the report -----------------------------------------------------------------------------------

SECTIONS = {
    "vectors": vectors,
    "start": start,
    "photograph": photograph,
    "decoding": decoding,
    "extraction": extraction,
    "pytorch": pytorch,
    "training": training,
    "training-memory": training_memory,
    "vectors-memory": vectors_memory,
    "memory-by-size": memory_by_size,
}
SLOW = "memory-by-size"


def measure_limits(bench: Bench) -> dict[str, object]:
    """What the machine can do, at the sizes that the model uses."""
    rows, columns, channels = synthetic.ENCODER["grid_shape"]
    shape = (rows * columns, channels)
    config = Config(attention="grid")
    model = MergeDecoder(config, synthetic.WORDS, shape, synthetic.EMBEDDING_SIZE)
    products = limits.layer_products(model, images=25, words=12 * 128)
    peaks = {
        dtype: limits.peak(products, dtype, MATRIX_SECONDS) for dtype in ("float32", "bfloat16")
    }
    size = bench.encoders[0].image_size
    return {
        "matrix products, GFLOP/s": peaks,
        "memory bandwidth, GB/s": limits.memory_bandwidth(1.0),
        "JPEG of 500 x 375, images/s": limits.jpeg_speed(bench.photographs[:32], size, 1.0),
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer repetitions, smaller data, no ResNet50")
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    add("--output", default="build/benchmark.json", help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = parse_arguments(arguments)
    before, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        bench = Bench(Path(folder), options.quick)
        found_limits = measure_limits(bench)
        for name in options.only or [n for n in SECTIONS if n != SLOW or not options.quick]:
            if "memory" in name and not memory.AVAILABLE:
                print(f"{name}: skipped, it needs /proc", file=sys.stderr)
                continue
            try:
                taken = seconds(lambda name=name: rows.extend(SECTIONS[name](bench)))
                print(f"{name}: {taken:.0f} s", file=sys.stderr)
            except ImportError as error:  # see requirements.txt here
                print(f"{name}: skipped, {error.name} is not installed", file=sys.stderr)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": limits.machine(),
        "load average before, after": [before, os.getloadavg()[0]],
        "limits": found_limits,
    }
    for key, value in report.items():
        print(f"{key}: {json.dumps(value)}")
    print(f"\n{table(rows)}\n")
    report["rows"] = [row.to_json() for row in rows]
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{sum(row.met for row in rows)} of {len(rows)} targets met; figures: {output}")


if __name__ == "__main__":
    main()
