"""What the machine can do: matrix products, JPEG decoding; and what it is."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path

import tensorflow as tf

from captioning.batches import CAPTIONS_PER_IMAGE
from captioning.images import load_image
from captioning.model import MergeDecoder

PACKAGES = ("tensorflow", "keras", "numpy", "pillow", "gensim", "torch")
RNN_STEPS = 12  # of a typical batch


def rate(work: Callable[[], object], amount: float, seconds: float) -> float:
    """Call `work` for about `seconds`; the median of `amount` per second, after a warm-up call."""
    work()
    rates, until = [], time.perf_counter() + seconds
    while not rates or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - start))
    return statistics.median(rates)


def matrix_products(model: MergeDecoder, images: float, words: float) -> list[tuple]:
    """The matrix products of a training step's forward pass: (how many, rows, inner, columns).

    The step has so many images and predicted words; pads are left out. The RNN is a GRU.
    """
    units, channels = model.config.units, model.feature_shape[-1]
    products = [
        (1, words, model.embedding.embeddings.shape[1], 3 * units),  # words into the RNN
        (RNN_STEPS, words / RNN_STEPS, units, 3 * units),  # steps of the RNN
        (1, words, units, units),  # words into the merge
        (1, words, units, model.vocabulary_size),  # word scores
        (1, images, channels, units),  # images into the merge
    ]
    if model.has_attention:
        positions = model.feature_shape[0]
        products += [
            (1, images * positions, channels, units),  # the grid
            (2, images * positions, units, units),  # keys, values
            (3, words, units, units),  # query, gate, context
            (2, words, units, positions),  # attention
        ]
    return products


def flops_per_caption(model: MergeDecoder, words: float) -> float:
    """The useful arithmetic of training on a caption of so many words: matrix products alone.

    A multiplication and an addition count as two. The backward pass costs twice the forward pass:
    one product for the gradient of the input, one for that of the weights.
    """
    return 3 * 2 * sum(map(math.prod, matrix_products(model, 1 / CAPTIONS_PER_IMAGE, words)))


def speed(shape: tuple, dtype: str, seconds: float) -> float:
    """GFLOP/s of a matrix product (rows, inner, columns), the median over about `seconds`."""
    rows, inner, columns = map(math.ceil, shape)
    a = tf.cast(tf.random.normal((rows, inner)), dtype)
    b = tf.cast(tf.random.normal((inner, columns)), dtype)
    repeats = math.ceil(5e8 / (rows * inner * columns))  # a small one would time the call

    def multiply():
        for _ in range(repeats):
            product = tf.matmul(a, b)
        return product[0, 0].numpy()

    return rate(multiply, repeats * 2e-9 * rows * inner * columns, seconds)


def jpeg_speed(paths: list[Path], size: int) -> float:
    """JPEGs per second, opened for an encoder by all processors."""
    with ThreadPoolExecutor() as pool:
        work = partial(pool.map, partial(load_image, size=size), paths)
        return rate(lambda: list(work()), len(paths), seconds=1.0)


def machine() -> dict[str, object]:
    """Processor, number of cores, system, Python, versions of the installed packages."""
    information, processor = Path("/proc/cpuinfo"), platform.processor()
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        processor = names[0].split(":")[1].strip() if names else processor
    system = f"{platform.system()} {platform.machine()}"
    found = {"processor": processor, "cores": os.cpu_count(), "system": system}
    versions = {package.name.lower(): package.version for package in metadata.distributions()}
    found["python"] = platform.python_version()
    return found | {name: versions[name] for name in PACKAGES if name in versions}
