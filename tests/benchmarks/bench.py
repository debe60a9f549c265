"""Measure this project against the usual way and against the machine's limits.

    make bench               all rows, on a quiet machine
    make bench QUICK=1       under five minutes: fewer repetitions, smaller data, no ResNet50
    python -m tests.benchmarks.bench --only decoding start

docs/performance.md explains the rows. The table goes to stdout, all figures to a JSON file.
"""

import argparse
import contextlib
import datetime
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, cached_property, partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import keras
import numpy as np

from captioning.captioner import Captioner
from captioning.captions import LIGHT
from captioning.config import LENGTH_PENALTY
from captioning.encoders import BUNDLED, Encoder, load_encoder
from captioning.extras.data.vectors import read_vectors
from captioning.extras.serve.light import LightCaptioner
from captioning.features import BATCH_SIZE, FeatureCache, cache_folder, extract_features
from captioning.files import json_bytes, write_bytes
from captioning.images import load_image
from captioning.steps import CLIP_NORM
from tests.benchmarks import limits, memory, synthetic, usual
from tests.benchmarks.measuring import Row, alternate, faster, median_ms, ratios, seconds, table

MATRIX_SECONDS = 0.3  # for each measurement of a matrix product
PREFIXES = {"none": 1536, "grid": 384}  # examples per step of the usual way; grids need memory
NAMES = {"none": "pooled", "grid": "grid"}


class Bench:
    """What the sections share: sizes, and data that is made on first use, in `folder`."""

    def __init__(self, folder: Path, quick: bool):
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
    def prepared(self, encoder: Encoder) -> Path:
        """Captions and features of 1,000 drawn images, as if of the encoder."""
        folder = self.folder / f"prepared-{encoder.name}"
        return synthetic.write_prepared(folder, 1000 - synthetic.DEV_IMAGES, encoder.to_json())

    @cached_property
    def photographs(self) -> list[Path]:
        """JPEGs of Flickr8k's size."""
        sources = sorted(p for p in memory.ROOT.glob("images/*.jpg") if p.stem != "captioned")
        count = 64 if self.quick else 256
        return synthetic.write_photographs(self.folder / "photographs", sources, count)

    @cache  # noqa: B019
    def captioner(self, attention: str, encoder: Encoder) -> Captioner:
        """A model that has learnt how long captions are."""
        settings = {"label_smoothing": 0.0, "dropout": 0.3}  # learns faster
        run = synthetic.Training(self.prepared(encoder), attention, **settings)
        run.train(self.teaching)
        captioner = Captioner(run.checkpoint)
        captioner.encoder = encoder
        return captioner


# --- training -------------------------------------------------------------------------------------


def training(bench: Bench) -> Iterator[Row]:
    """Captions per second against prefix expansion; useful arithmetic against the peak."""
    folder = bench.prepared(bench.encoders[0])
    for attention, name in NAMES.items():
        runs = {
            dtype: synthetic.Training(folder, attention, bfloat16=dtype == "bfloat16")
            for dtype in ("float32", "bfloat16")
        }
        jobs = {"usual": prefix_job(runs["float32"], PREFIXES[attention])}
        for dtype, run in runs.items():
            jobs[dtype] = partial(run.train, bench.steps)
            jobs[f"{dtype} peak"] = peak_job(run, dtype)
        found = alternate(jobs, bench.repetitions)
        note = f"usual: {PREFIXES[attention]} prefixes per step, in float32"
        flops = limits.flops_per_caption(run.model, run.words_per_caption)
        for dtype, target in (("float32", 10), ("bfloat16", 15)):
            title = f"training, {name}, {dtype}"
            yield faster(title, "captions/s", found, target, ours=dtype, note=note)
            useful, peak = [flops * rate / 1e9 for rate in found[dtype]], found[f"{dtype} peak"]
            percent = [100 * value for value in ratios(useful, peak)]
            title += ", useful arithmetic"
            yield Row(title, "GFLOP/s", useful, percent, 80, scale="% of the peak", usual=peak)


def prefix_job(run: synthetic.Training, rows: int):
    """Captions per second of the usual way: one step on `rows` prefixes of training captions."""
    config, tokens = run.config, run.split.tokens
    captions = [tokens[number] for number in range(len(tokens))]
    longest = max(map(len, captions)) - 1
    adam = keras.optimizers.AdamW(config.learning_rate, 0.0, global_clipnorm=CLIP_NORM)
    model = usual.prefix_model(run.model, longest, adam)
    rng = np.random.default_rng(0)

    def step() -> None:
        chosen = rng.permutation(len(captions))[: int(1.5 * rows / run.words_per_caption)]
        words, targets, owners = usual.expand([captions[number] for number in chosen], longest)
        images = tokens.images[chosen[owners[:rows]]]
        features = run.split.features(images, np.zeros(rows, bool))
        usual.train_on_prefixes(model, words[:rows], features, targets[:rows])

    return lambda: rows / run.words_per_caption / seconds(step)


def peak_job(run: synthetic.Training, dtype: str):
    """GFLOP/s of the model's matrix product that is fastest here, measured again on each call."""
    captions = run.config.batch_size
    images, words = captions / synthetic.CAPTIONS_PER_IMAGE, captions * limits.RNN_STEPS
    shapes = [shape for _, *shape in limits.matrix_products(run.model, images, words)]
    best = max(shapes, key=lambda shape: limits.speed(shape, dtype, MATRIX_SECONDS))
    return lambda: limits.speed(best, dtype, MATRIX_SECONDS)


# --- captions -------------------------------------------------------------------------------------


def photograph(bench: Bench) -> Iterator[Row]:
    """A greedy caption of one photograph, the model loaded: CNN and decoding."""
    for encoder, attention in itertools.product(bench.encoders, NAMES):
        yield from one_photograph(bench, encoder, attention)


def one_photograph(bench: Bench, encoder: Encoder, attention: str) -> Iterator[Row]:
    """The rows of one encoder and one kind of model."""
    captioner = bench.captioner(attention, encoder)
    pixels = load_image(bench.photographs[0], encoder.image_size)
    model, max_words = captioner.model, captioner.model.config.max_words
    decoder = usual.prefix_model(model, max_words + 1)
    cnn = usual.cnn_for(encoder, model.feature_shape)

    def by_word():
        return usual.caption_with_a_cnn_pass_per_word(cnn, decoder, pixels, max_words)

    def ours():
        return captioner.caption_features(captioner.encode([pixels]), beam_width=1)

    jobs = {
        "usual": lambda: 1000 * seconds(by_word),
        "ours": lambda: median_ms(ours),
        "bare": lambda: median_ms(lambda: encoder.encode(pixels[None])),
    }
    found = alternate(jobs, bench.repetitions)
    title = f"one photograph, {encoder.name}, {NAMES[attention]}"
    speed_up = ratios(found["usual"], found["ours"])
    note = f"a caption of {len(by_word()) - 1} words"
    yield Row(title, "ms", found["ours"], speed_up, 20, usual=found["usual"], note=note)
    title += ", against one bare CNN pass"
    longer = ratios(found["ours"], found["bare"])
    yield Row(title, "ms", found["ours"], longer, 1.15, at_least=False, usual=found["bare"])


def decoding(bench: Bench) -> Iterator[Row]:
    """Captions per second from cached features of 1,000 images."""
    encoder = bench.encoders[0]
    features = FeatureCache.open(cache_folder(bench.prepared(encoder), encoder.name))

    def search(captioner, width):
        return captioner.caption_cached(features, features.images, width, LENGTH_PENALTY)

    def rate(captioner, width):
        return len(features.images) / seconds(lambda: search(captioner, width))

    for attention, target in (("none", 1500), ("grid", 600)):
        captioner = bench.captioner(attention, encoder)
        jobs = {"beam": partial(rate, captioner, 3), "greedy": partial(rate, captioner, 1)}
        found = alternate(jobs, bench.repetitions)
        lengths = [len(caption.split()) for caption in search(captioner, 1)]
        note = f"captions of {np.mean(lengths):.1f} words, the longest of {max(lengths)}"
        title, unit, greedy = f"decoding, {NAMES[attention]}", "captions/s", found["greedy"]
        yield Row(f"{title}, greedy", unit, greedy, greedy, target, scale=unit, note=note)
        slower = ratios(greedy, found["beam"])
        title += ", beam 3 against greedy: times slower"
        yield Row(title, unit, found["beam"], slower, 4, at_least=False, usual=greedy)


# --- features -------------------------------------------------------------------------------------


def extraction(bench: Bench) -> Iterator[Row]:
    """Images per second from JPEG files to the cache, against `predict` and the CNN alone."""
    for encoder in bench.encoders:
        yield from one_extraction(bench, encoder)


def one_extraction(bench: Bench, encoder: Encoder) -> Iterator[Row]:
    """The rows of one encoder."""
    cnn = usual.cnn_for(encoder, encoder.grid_shape[-1:])
    paths, numbers = bench.photographs, itertools.count()
    folder, names = paths[0].parent, [path.name for path in paths]
    pixels = pixels_of(bench, encoder)

    def ours():
        target = bench.folder / f"{encoder.name}-{next(numbers)}"
        with contextlib.redirect_stderr(io.StringIO()):
            taken = seconds(lambda: extract_features(target, folder, names, encoder))
        return len(paths) / taken

    def one_by_one():
        some = paths[:12]
        return len(some) / seconds(lambda: usual.extract_one_by_one(cnn, some, encoder.image_size))

    alone = partial(images_per_second, partial(encoder.encode, pixels))
    jobs = {"usual": one_by_one, "ours": ours, "alone": alone}
    found = alternate(jobs, bench.repetitions)
    title = f"extraction, {encoder.name}"
    yield faster(title, "images/s", found, 3)
    percent = [100 * value for value in ratios(found["ours"], found["alone"])]
    title, scale = f"{title}, against the CNN alone", "% of its speed"
    yield Row(title, "images/s", found["ours"], percent, 90, scale=scale, usual=found["alone"])


def pixels_of(bench: Bench, encoder: Encoder) -> np.ndarray:
    """A batch of opened photographs: uint8 (BATCH_SIZE, size, size, 3)."""
    paths = bench.photographs[:BATCH_SIZE]
    return np.stack([load_image(path, encoder.image_size) for path in paths])


def images_per_second(encode) -> float:
    """The speed of a function that encodes BATCH_SIZE images."""
    return 1000 * BATCH_SIZE / median_ms(encode)


def pytorch(bench: Bench) -> Iterator[Row]:
    """The same networks in PyTorch, on the same pictures in memory, and the same training."""
    import torch

    from tests.benchmarks import torch_networks

    for encoder in bench.encoders:
        pixels = pixels_of(bench, encoder)
        tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        work = {"usual": partial(torch_networks.network(encoder.name), tensor)}
        work["ours"] = partial(encoder.encode, pixels)
        jobs = {name: partial(images_per_second, encode) for name, encode in work.items()}
        with torch.inference_mode():
            found = alternate(jobs, bench.repetitions)
        yield faster(f"{encoder.name} against PyTorch", "images/s", found, 1)
    folder = bench.prepared(bench.encoders[0])
    for attention, name in NAMES.items():
        runs = {
            kind: synthetic.Training(folder, attention, bfloat16=kind == "bfloat16")
            for kind in ("usual", "float32", "bfloat16")
        }
        model, config = runs["usual"].model, runs["usual"].config
        sizes = (model.vocabulary_size, model.feature_shape, model.embedding.output_dim)
        decoder = torch_networks.MergeDecoder(config, *sizes)
        runs["usual"].steps.train = torch_networks.training_step(decoder)
        jobs = {kind: partial(run.train, bench.steps) for kind, run in runs.items()}
        found = alternate(jobs, bench.repetitions)
        for kind in ("float32", "bfloat16"):
            title = f"training, {name}, {kind}, against PyTorch"
            yield faster(title, "captions/s", found, 1.3, ours=kind, note="PyTorch: float32")


# --- without TensorFlow ---------------------------------------------------------------------------


def light(bench: Bench) -> Iterator[Row]:
    """The shipped `.tflite` file: a whole process, one photograph, and its CNN alone."""
    photograph = bench.photographs[0]
    jobs = {
        "usual": partial(process_seconds, "test.py", "--image", photograph),
        "ours": partial(process_seconds, "-m", "captioning", "caption", photograph),
    }
    found = alternate(jobs, bench.repetitions)
    quicker = ratios(found["usual"], found["ours"])
    title = "caption, cold, against test.py --image"
    yield Row(title, "s", found["ours"], quicker, 6, usual=found["usual"])
    if memory.AVAILABLE:
        command = ("-m", "captioning", "caption", photograph)
        peaks = [memory.whole_peak(*command) for _ in range(bench.repetitions)]
        yield Row("memory of caption", "MB", peaks, peaks, 180, at_least=False, scale="MB")
    captioner, encoder = LightCaptioner(LIGHT), bench.encoders[0]
    pixels = pixels_of(bench, encoder)
    one = pixels[:1]
    jobs = {
        "usual": lambda: median_ms(lambda: captioner.encode(one)),
        "ours": lambda: median_ms(lambda: captioner.caption_features(captioner.encode(one), 1)),
    }
    found = alternate(jobs, bench.repetitions)
    title, longer = "one photograph, LiteRT", ratios(found["ours"], found["usual"])
    title += ", against one bare CNN pass"
    yield Row(title, "ms", found["ours"], longer, 1.3, at_least=False, usual=found["usual"])
    jobs = {
        "usual": partial(images_per_second, partial(encoder.encode, pixels)),
        "ours": partial(images_per_second, partial(captioner.encode, pixels)),
    }
    found = alternate(jobs, bench.repetitions)
    yield faster("CNN, LiteRT one by one against a Keras batch", "images/s", found, 1.3)


# --- memory, start, word vectors ------------------------------------------------------------------


def peak_memory(bench: Bench) -> Iterator[Row]:
    """Peak memory of training above that of importing TensorFlow; how it grows with the data."""
    if not memory.AVAILABLE:
        print("memory: skipped, it needs /proc", file=sys.stderr)
        return

    def peaks(*job):
        return [memory.peak(*job) for _ in range(1 if bench.quick else 3)]

    def growth(title, target, small, large):
        more = [b - a for a, b in zip(small, large, strict=True)]
        return Row(title, "MB", large, more, target, at_least=False, scale="MB more", usual=small)

    for attention, name in NAMES.items():
        found = peaks("training", bench.prepared(bench.encoders[0]), attention, bench.steps)
        title = f"memory of training, {name}"
        yield Row(title, "MB", found, found, 1500, at_least=False, scale="MB")
    found = []
    for rows in (20_000, 80_000):
        path = bench.folder / f"{rows}.vec"
        synthetic.write_vectors(path, rows, synthetic.EMBEDDING_SIZE)
        found.append(peaks("vectors", path, synthetic.WORDS))
    yield growth("memory of reading a .vec, four times the rows", 10, *found)
    if not bench.quick:
        found = []
        for images in (8_000, 120_000):
            folder = bench.folder / f"prepared-{images}"
            synthetic.write_prepared(folder, images, sparse=True)
            found.append(peaks("training", folder, "grid", bench.steps))
        yield growth("memory of training, grid, 120,000 images, not 8,000", 200, *found)


def start(bench: Bench) -> Iterator[Row]:
    """`test.py --image` as a process, against importing TensorFlow and loading the encoder."""

    code = "import tensorflow; from captioning.encoders import BUNDLED, load_encoder as load; "
    jobs = {
        "usual": partial(process_seconds, "-c", f"{code}load(BUNDLED)"),
        "ours": partial(process_seconds, "test.py", "--image", bench.photographs[0]),
    }
    found = alternate(jobs, bench.repetitions)
    longer = ratios(found["ours"], found["usual"])
    title = "test.py --image, cold, against TensorFlow and the encoder"
    yield Row(title, "s", found["ours"], longer, 1.5, at_least=False, usual=found["usual"])


def process_seconds(*command) -> float:
    """The time of a Python process."""
    command = [sys.executable, *map(str, command)]
    return seconds(
        lambda: subprocess.run(command, cwd=memory.ROOT, check=True, capture_output=True)
    )


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
    found = alternate(jobs, bench.repetitions)
    yield faster(f".vec of {rows:,} rows", "rows/s", found, 5)


# --- the report -----------------------------------------------------------------------------------

SECTIONS = {
    "vectors": vectors,
    "start": start,
    "light": light,
    "photograph": photograph,
    "decoding": decoding,
    "extraction": extraction,
    "pytorch": pytorch,
    "training": training,
    "memory": peak_memory,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer repetitions, smaller data, no ResNet50")
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    add("--output", default="build/benchmark.json", help="default: %(default)s")
    options = parser.parse_args(arguments)
    before, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        bench = Bench(Path(folder), options.quick)
        jpegs = limits.jpeg_speed(bench.photographs[:32], bench.encoders[0].image_size)
        for name in options.only or SECTIONS:
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
        "JPEGs opened, all threads, images/s": jpegs,
    }
    for key, value in report.items():
        print(f"{key}: {json.dumps(value)}")
    print(f"\n{table(rows)}\n")
    report["rows"] = [row.to_json() for row in rows]
    write_bytes(options.output, json_bytes(report))
    met = sum(row.met for row in rows)
    print(f"{met} of {len(rows)} targets met; figures: {options.output}")


if __name__ == "__main__":
    main()
