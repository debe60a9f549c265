"""Measure this project against the usual way and against the machine's limits.

    make bench               all rows, on a quiet machine
    make bench QUICK=1       fewer repetitions, smaller data, no ResNet50
    python -m tests.benchmarks.bench --only decoding start

What each row measures and how is told in docs/performance.md. The table goes to stdout, all
figures to a JSON file.
"""

import argparse
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np

from captioning import features as feature_module
from captioning.captioner import LENGTH_PENALTY, Captioner
from captioning.decoding import MAX_WORDS
from captioning.encoders import BUNDLED, Encoder, encode_images, load_encoder, load_image
from captioning.features import FeatureCache, cache_folder, extract_features
from captioning.model import ModelConfig
from tests.benchmarks import limits, memory, synthetic, usual
from tests.benchmarks.measuring import (
    Row,
    alternate,
    faster,
    left_out,
    ratios,
    seconds,
    table,
)

ROOT = Path(__file__).resolve().parents[2]
MATRIX_SECONDS = 0.3  # for each measurement of a matrix product
PREFIX_ROWS = {"none": 1536, "grid": 384}  # examples an update; a grid for each takes memory
NAMES = {"none": "pooled", "grid": "grid"}


class Bench:
    """What the rows share: sizes, and data that is made when first asked for.

    Args:
        folder: for data; the caller removes it.
        quick: fewer repetitions, smaller data.
    """

    def __init__(self, folder: Path, quick: bool):
        """Settle the sizes."""
        self.folder = folder
        self.quick = quick
        self.repetitions = 3 if quick else 9
        self.updates = 6 if quick else 20  # of ours, a measurement
        self.teaching = 60 if quick else 150  # updates before a model is decoded
        self._prepared: dict[str, Path] = {}
        self._taught: dict[tuple[str, str], Captioner] = {}

    @cached_property
    def encoder(self) -> Encoder:
        """The bundled encoder."""
        return load_encoder(BUNDLED)

    @cached_property
    def encoders(self) -> list[Encoder]:
        """The bundled encoder and, if there is time, ResNet50.

        ResNet50 has random weights: those of ImageNet would need a download.
        """
        if self.quick:
            return [self.encoder]
        path = self.folder / "resnet50.weights.h5"
        keras.applications.ResNet50(include_top=False, weights=None).save_weights(path)
        return [self.encoder, load_encoder("resnet50", weights=path)]

    @property
    def prepared(self) -> Path:
        """Captions and features of 1,000 drawn images, as of the bundled encoder."""
        return self._prepare(self.encoder)

    def _prepare(self, encoder: Encoder) -> Path:
        if encoder.name not in self._prepared:
            folder, images = self.folder / f"prepared-{encoder.name}", 1000 - synthetic.DEV_IMAGES
            self._prepared[encoder.name] = folder
            synthetic.write_prepared(folder, images, encoder.describe())
        return self._prepared[encoder.name]

    @cached_property
    def photographs(self) -> list[Path]:
        """JPEGs of Flickr8k's size."""
        pictures = (ROOT / "images").glob("*.jpg")
        sources = sorted(path for path in pictures if path.name != "captioned.jpg")
        count = 64 if self.quick else 256
        return synthetic.write_photographs(self.folder / "photographs", sources, count)

    def captioner(self, attention: str, encoder: Encoder | None = None) -> Captioner:
        """A model that has learnt how long captions are, for the bundled encoder or another."""
        encoder = encoder or self.encoder
        key = (attention, encoder.name)
        if key not in self._taught:
            output = self.folder / f"taught-{attention}-{encoder.name}"
            settings = synthetic.TEACHING_SETTINGS | {"epochs": 4}
            prepared = self._prepare(encoder)
            trainer = synthetic.make_trainer(prepared, output, attention, **settings)
            captioner = Captioner(synthetic.teach(trainer, self.teaching))
            captioner.encoder = encoder
            self._taught[key] = captioner
        return self._taught[key]


# --- training ------------------------------------------------------------------------------------


def training(bench: Bench) -> Iterator[Row]:
    """Captions a second against prefix expansion; useful arithmetic against the peak."""
    for attention, name in NAMES.items():
        dtypes = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
        trainers = {
            dtype: synthetic.make_trainer(
                bench.prepared, bench.folder / f"{attention}-{dtype}", attention, policy, epochs=99
            )
            for dtype, policy in dtypes.items()
        }
        jobs = {"usual": prefix_job(trainers["float32"], PREFIX_ROWS[attention])}
        arithmetic = {}  # GFLOP/s of each round, the warm-up's first
        for dtype, trainer in trainers.items():
            arithmetic[dtype] = []
            jobs[dtype] = update_job(trainer, bench.updates, arithmetic[dtype])
            jobs[f"{dtype} peak"] = peak_job(trainer, dtype)
        found = alternate(jobs, bench.repetitions)
        for dtype, target in (("float32", 10), ("bfloat16", 15)):
            row = faster(f"training, {name}, {dtype}", "captions/s", found, target, ours=dtype)
            note = f"usual: {PREFIX_ROWS[attention]} prefixes an update, in float32"
            yield dataclasses.replace(row, note=note)
        for dtype in dtypes:
            useful, peak = arithmetic[dtype][1:], found[f"{dtype} peak"]
            share = [100 * value for value in ratios(useful, peak)]
            title = f"training, {name}, {dtype}, useful arithmetic"
            yield Row(title, "GFLOP/s", useful, share, 80, scale="% of the peak", usual=peak)


def prefix_job(trainer, rows: int):
    """Captions a second of the usual way: an update of `rows` prefixes of the training captions."""
    config, tokens = trainer.config, trainer.train.tokens
    captions = [tokens[number] for number in range(len(tokens))]
    rows_a_caption = np.mean([len(caption) - 1 for caption in captions])
    longest = max(map(len, captions)) - 1
    model = usual.prefix_model(trainer.model.config, longest)
    optimizer = keras.optimizers.AdamW(
        config.learning_rate, config.weight_decay, global_clipnorm=config.clip_norm
    )
    usual.compile_model(model, optimizer, config.label_smoothing)
    rng = np.random.default_rng(0)

    def update() -> None:
        chosen = rng.permutation(len(captions))[: int(1.5 * rows / rows_a_caption)]
        words, targets, owners = usual.expand([captions[number] for number in chosen], longest)
        images = tokens.images[chosen[owners[:rows]]]
        features = trainer.train.features(images)
        usual.train_on_prefixes(model, words[:rows], features, targets[:rows])

    return lambda: rows / rows_a_caption / seconds(update)


def update_job(trainer, updates: int, arithmetic: list[float]):
    """Captions a second of this project's training; notes the useful GFLOP/s in `arithmetic`."""
    batches = itertools.chain.from_iterable(map(trainer._plan, itertools.count(1)))

    def measure() -> float:
        captions = flops = 0.0

        def train() -> None:
            nonlocal captions, flops
            for features, words in itertools.islice(batches, updates):
                _, count = trainer._train_step(features, words)
                captions += np.count_nonzero(words.any(axis=-1))
                flops += limits.update_flops(trainer.model.config, len(features), float(count))

        taken = seconds(train)
        arithmetic.append(flops / taken / 1e9)
        return captions / taken

    return measure


def peak_job(trainer, dtype: str):
    """GFLOP/s of the model's matrix product that this machine does best, measured again a call."""
    batch = trainer.config.batch_size
    images, words = batch // trainer.config.captions_per_image, 12 * batch
    products = limits.layer_products(trainer.model.config, images, words)
    speeds = limits.peak(products, dtype, MATRIX_SECONDS)
    best = max(speeds, key=speeds.get)
    return lambda: limits.peak({best: products[best]}, dtype, MATRIX_SECONDS)[best]


# --- captions ------------------------------------------------------------------------------------


def one_image(bench: Bench) -> Iterator[Row]:
    """A greedy caption of one photograph, the model loaded: CNN and decoding."""
    for encoder, (attention, name) in itertools.product(bench.encoders, NAMES.items()):
        size = encoder.image_size
        pixels = load_image(bench.photographs[0], size)
        batch = pixels[None].astype(np.float32)
        captioner = bench.captioner(attention, encoder)
        config = captioner.model.config
        decoder = usual.prefix_model(config, MAX_WORDS + 1)
        usual.copy_weights(captioner.model, decoder)
        cnn = usual.cnn_for(encoder.model, size, config.feature_shape)

        def ours(captioner=captioner, pixels=pixels):
            return captioner.caption_features(captioner.encode([pixels]))

        def by_word(cnn=cnn, decoder=decoder, pixels=pixels):
            return usual.caption_with_a_cnn_pass_a_word(cnn, decoder, pixels, MAX_WORDS)

        def bare(encoder=encoder, batch=batch):
            return encoder.forward(batch).numpy()

        found = alternate(
            {
                "usual": lambda by_word=by_word: 1000 * seconds(by_word),
                "ours": lambda ours=ours: median_ms(ours),
                "bare": lambda bare=bare: median_ms(bare),
            },
            bench.repetitions,
        )
        title = f"one photograph, {encoder.name}, {name}"
        note = f"a caption of {len(by_word()) - 1} words"
        speed_up = ratios(found["usual"], found["ours"])
        yield Row(title, "ms", found["ours"], speed_up, 20, usual=found["usual"], note=note)
        title += ", against one bare CNN pass"
        share = ratios(found["ours"], found["bare"])
        yield Row(title, "ms", found["ours"], share, 1.15, at_least=False, usual=found["bare"])


def median_ms(work, calls: int = 15) -> float:
    """The median of some calls, in milliseconds."""
    return 1000 * float(np.median([seconds(work) for _ in range(calls)]))


def decoding(bench: Bench) -> Iterator[Row]:
    """Captions a second from cached features of 1,000 images."""
    cache = FeatureCache.open(cache_folder(bench.prepared, bench.encoder.name))
    for attention, target in (("none", 1500), ("grid", 600)):
        captioner, lengths = bench.captioner(attention), []

        def rate(beam_width, captioner=captioner, lengths=lengths):
            def search():
                found = captioner.caption_cached(cache, cache.images, beam_width, LENGTH_PENALTY)
                lengths[:] = [len(caption.split()) for caption in found]

            return len(cache.images) / seconds(search)

        found = alternate(
            {"beam": lambda rate=rate: rate(3), "greedy": lambda rate=rate: rate(1)},
            bench.repetitions,
        )
        note = f"captions of {np.mean(lengths):.1f} words, the longest of {max(lengths)}"
        title, greedy = f"decoding, {NAMES[attention]}", found["greedy"]
        unit = "captions/s"
        yield Row(f"{title}, greedy", unit, greedy, greedy, target, scale=unit, note=note)
        slower = ratios(greedy, found["beam"])
        title = f"{title}, beam 3 against greedy: times slower"
        yield Row(title, unit, found["beam"], slower, 4, at_least=False, usual=greedy)


# --- features ------------------------------------------------------------------------------------


def extraction(bench: Bench) -> Iterator[Row]:
    """Images a second from JPEG files to the cache, and how busy the CNN is meanwhile."""
    for encoder in bench.encoders:
        name, size = encoder.name, encoder.image_size
        cnn = usual.cnn_for(encoder.model, size, (encoder.grid_shape[-1],))
        paths, busy, fresh = bench.photographs, [], itertools.count()

        def ours(encoder=encoder, paths=paths, busy=busy, fresh=fresh):
            images = [path.name for path in paths]
            target = bench.folder / f"{encoder.name}-{next(fresh)}"
            with counting_cnn_time() as in_cnn:
                taken = seconds(lambda: extract_features(target, paths[0].parent, images, encoder))
            busy.append(100 * sum(in_cnn) / taken)
            return len(paths) / taken

        def one_by_one(cnn=cnn, size=size, paths=paths[:12]):
            return len(paths) / seconds(lambda: usual.extract_one_by_one(cnn, paths, size))

        found = alternate({"usual": one_by_one, "ours": ours}, bench.repetitions)
        yield faster(f"extraction, {name}", "images/s", found, 3)
        share = busy[1:]
        unit = "% of the time"
        yield Row(f"extraction, {name}, CNN busy", unit, share, share, 90, scale=unit)
        yield against_torch(bench, encoder)


@contextlib.contextmanager
def counting_cnn_time() -> Iterator[list[float]]:
    """Give a list in which the seconds of every CNN pass of an extraction are noted."""
    noted, original = [], feature_module.encode_images

    def timed(*arguments):
        before = time.perf_counter()
        grid = original(*arguments)
        noted.append(time.perf_counter() - before)
        return grid

    with mock.patch.object(feature_module, "encode_images", timed):
        yield noted


def against_torch(bench: Bench, encoder: Encoder) -> Row:
    """The same network in PyTorch, on the same pictures in memory."""
    title, target = f"{encoder.name} against PyTorch", 1
    try:
        from tests.benchmarks.torch_networks import network

        forward = network(encoder.name)
    except ImportError as error:
        missing = error.name or "torch"
        return left_out(title, f"{missing.split('.')[0]} is not installed", target)
    import torch

    count = feature_module.BATCH_SIZE
    pixels = np.stack([load_image(path, encoder.image_size) for path in bench.photographs[:count]])
    tensor = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2).copy())

    def theirs():
        with torch.inference_mode():
            return forward(tensor)

    found = alternate(
        {
            "usual": lambda: 1000 * count / median_ms(theirs),
            "ours": lambda: 1000 * count / median_ms(lambda: encode_images(encoder, pixels)),
        },
        bench.repetitions,
    )
    return faster(title, "images/s", found, target)


# --- memory, start, word vectors ------------------------------------------------------------------


def training_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of an epoch of training above that of importing TensorFlow."""
    for attention, name in NAMES.items():
        title = f"memory of training, {name}"
        if not memory.available():
            yield left_out(title, "this system does not tell it (/proc)", 1.5, at_least=False)
            continue
        updates = 8 if bench.quick else 36
        peaks = [
            memory.peak("training", bench.prepared, attention, updates) / 1000
            for _ in range(1 if bench.quick else 3)
        ]
        yield Row(title, "GB", peaks, peaks, 1.5, at_least=False, scale="GB")


def memory_by_size(bench: Bench) -> Iterator[Row]:
    """Peak memory of training on 8,000 and on 120,000 images."""
    title = "memory of training, grid, 120,000 images less 8,000 images"
    reason = "it needs minutes" if bench.quick else "this system does not tell it (/proc)"
    if bench.quick or not memory.available():
        yield left_out(title, reason, 200, at_least=False)
        return
    peaks = {}
    for images in (8_000, 120_000):
        folder = bench.folder / f"prepared-{images}"
        synthetic.write_prepared(folder, images, sparse=True)
        peaks[images] = [memory.peak("training", folder, "grid", 20) for _ in range(3)]
    small, large = peaks[8_000], peaks[120_000]
    more = [b - a for a, b in zip(small, large, strict=True)]
    yield Row(title, "MB", large, more, 200, at_least=False, scale="MB", usual=small)


def start(bench: Bench) -> Iterator[Row]:
    """`test.py --image` as a process of its own, against importing TensorFlow and the encoder."""
    picture = str(bench.photographs[0])
    code = "import tensorflow; from captioning.encoders import BUNDLED, load_encoder; "
    commands = {
        "usual": [sys.executable, "-c", code + "load_encoder(BUNDLED)"],
        "ours": [sys.executable, "test.py", "--image", picture],
    }
    jobs = {
        name: lambda command=command: seconds(
            lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        )
        for name, command in commands.items()
    }
    found = alternate(jobs, bench.repetitions)
    share = ratios(found["ours"], found["usual"])
    title = "test.py --image, cold, against TensorFlow and the encoder"
    yield Row(title, "s", found["ours"], share, 1.5, at_least=False, usual=found["usual"])


def vectors(bench: Bench) -> Iterator[Row]:
    """Reading the vectors of a vocabulary from a `.vec`, against gensim; and its memory."""
    from gensim.models import KeyedVectors

    from captioning.extras.vectors import read_vectors

    rows = 20_000 if bench.quick else 100_000
    path = bench.folder / "vectors.vec"
    words = synthetic.write_vectors(path, rows, synthetic.EMBEDDING_SIZE)
    words = words[:: max(1, rows // synthetic.WORDS)]

    def whole():
        loaded = KeyedVectors.load_word2vec_format(path)
        return {word: loaded[word] for word in words}

    def ours():
        return read_vectors(path, words).vectors

    ours_found, theirs = ours(), whole()
    if any(not np.array_equal(ours_found[word], theirs[word]) for word in words):
        raise RuntimeError(f"{path}: gensim reads other numbers")
    jobs = {"usual": lambda: rows / seconds(whole), "ours": lambda: rows / seconds(ours)}
    found = alternate(jobs, bench.repetitions, warm_up=False)
    yield faster(f".vec of {rows:,} rows", "rows/s", found, 5)

    title = "memory of reading a .vec, four times the rows"
    if not memory.available():
        yield left_out(title, "this system does not tell it (/proc)", 10, at_least=False)
        return
    large = bench.folder / "large.vec"
    synthetic.write_vectors(large, 4 * rows, synthetic.EMBEDDING_SIZE)
    peaks = [
        [memory.peak("vectors", file, synthetic.WORDS) for file in (path, large)] for _ in range(3)
    ]
    small, large = map(list, zip(*peaks, strict=True))
    more = [b - a for a, b in peaks]
    yield Row(title, "MB", large, more, 10, at_least=False, scale="MB more", usual=small)


# --- the report ----------------------------------------------------------------------------------

SECTIONS = {
    "vectors": vectors,
    "start": start,
    "one-image": one_image,
    "decoding": decoding,
    "extraction": extraction,
    "training": training,
    "training-memory": training_memory,
    "memory-by-size": memory_by_size,
}


def measure_limits(bench: Bench) -> dict[str, object]:
    """What the machine can do, at the sizes that the model uses."""
    rows, columns, channels = synthetic.GRID
    config = ModelConfig(synthetic.WORDS, (rows * columns, channels), attention="grid")
    products = limits.layer_products(config, images=25, words=12 * 128)
    gflops = {
        dtype: limits.peak(products, dtype, MATRIX_SECONDS) for dtype in ("float32", "bfloat16")
    }
    return {
        "matrix products, GFLOP/s": gflops,
        "memory bandwidth, GB/s": limits.memory_bandwidth(1.0),
        "JPEG of 500 x 375, images/s": limits.jpeg_speed(
            bench.photographs[:32], bench.encoder.image_size, 1.0
        ),
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer repetitions, smaller data, no ResNet50")
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    add("--output", default="build/benchmark.json", help="default: %(default)s")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = parse_arguments(arguments)
    before, rows = os.getloadavg(), []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        bench = Bench(Path(folder), options.quick)
        found_limits = measure_limits(bench)
        for name in options.only or SECTIONS:
            taken = seconds(lambda name=name: rows.extend(SECTIONS[name](bench)))
            print(f"{name}: {taken:.0f} s", file=sys.stderr)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": limits.machine(),
        "load average before, after": [before[0], os.getloadavg()[0]],
        "versions": limits.versions(),
        "limits": found_limits,
        "rows": [row.to_json() for row in rows],
    }
    print(describe(report))
    print(table(rows))
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    missed = [row for row in rows if not row.left_out and not row.met]
    measured = [row for row in rows if not row.left_out]
    print(f"\n{len(measured) - len(missed)} of {len(measured)} targets met; figures: {output}")


def describe(report: dict) -> str:
    """Machine, versions and limits, a line each."""
    lines = []
    for key in ("machine", "load average before, after", "versions", "limits"):
        lines.append(f"{key}: {json.dumps(report[key], default=str)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
