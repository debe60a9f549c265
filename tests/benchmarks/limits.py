"""What the machine can do: matrix multiplication, memory, JPEG decoding; and what it is."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from captioning.images import load_image
from captioning.model import MergeDecoder

PACKAGES = ("tensorflow", "keras", "numpy", "pillow", "gensim", "torch")
COPY_BYTES = 512 << 20  # more than the caches of most machines hold


def rate(work: Callable[[], object], amount: float, seconds: float) -> float:
    """Call `work` for about `seconds`; the median of `amount` per second, after a warm-up call."""
    work()
    rates, until = [], time.perf_counter() + seconds
    while not rates or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - start))
    return statistics.median(rates)


def layer_products(model: MergeDecoder, images: int, words: int) -> dict[str, tuple[int, int, int]]:
    """The matrix products (rows, inner, columns) of a training step's forward pass, by name.

    `images` and predicted `words` are those of one step.
    """
    units, channels = model.config.units, model.feature_shape[-1]
    products = {
        "words into the RNN": (words, model.embedding.embeddings.shape[1], 3 * units),
        "RNN, one step": (max(1, words // 12), units, 3 * units),
        "words into the merge": (words, units, units),
        "word scores": (words, units, model.vocabulary_size),
        "images into the merge": (images, channels, units),
    }
    if model.has_attention:
        positions = images * model.feature_shape[0]
        products["grid"] = (positions, channels, units)
        products["keys, values"] = (positions, units, units)
    return products


def step_flops(model: MergeDecoder, images: int, words: float) -> float:
    """The useful arithmetic of a training step: its matrix products alone, without pads.

    A multiplication and an addition count as two. The backward pass costs twice the forward pass:
    one product for the gradient of the input, one for that of the weights. The RNN is a GRU.
    """
    units, channels = model.config.units, model.feature_shape[-1]
    per_word = 3 * units * (model.embedding.embeddings.shape[1] + units)  # the GRU
    per_word += units * (units + model.vocabulary_size)
    per_image = channels * units
    if model.has_attention:
        positions = model.feature_shape[0]
        per_word += 3 * units * units + 2 * positions * units  # query, gate, context; attention
        per_image += positions * (channels + 2 * units) * units
    return 3 * 2 * (words * per_word + images * per_image)


def peak(products: dict, dtype: str, seconds: float) -> dict[str, float]:
    """GFLOP/s of each product (rows, inner, columns), the median over about `seconds` each."""

    def speed(rows, inner, columns):
        a = tf.cast(tf.random.normal((rows, inner)), dtype)
        b = tf.cast(tf.random.normal((inner, columns)), dtype)
        repeats = max(1, int(5e8 / (rows * inner * columns)))  # a small one would time the call

        def multiply():
            for _ in range(repeats):
                product = tf.matmul(a, b)
            return product[0, 0].numpy()

        return rate(multiply, repeats * 2e-9 * rows * inner * columns, seconds)

    return {name: speed(*shape) for name, shape in products.items()}


def memory_bandwidth(seconds: float) -> float:
    """GB/s read and written by copying large arrays, one thread per processor."""
    threads = os.cpu_count()
    size = COPY_BYTES // threads
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            return list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        return rate(copy, 2e-9 * size * threads, seconds)


def jpeg_speed(paths: list[Path], size: int, seconds: float) -> dict[str, float]:
    """JPEGs per second: fully decoded in one thread; opened for an encoder in all threads."""

    def decode():
        for path in paths:
            with Image.open(path) as image:
                image.convert("RGB")

    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def load():
            return list(pool.map(lambda path: load_image(path, size), paths))

        return {
            "decoded, one thread": rate(decode, len(paths), seconds),
            f"opened at {size} x {size}, all threads": rate(load, len(paths), seconds),
        }


def machine() -> dict[str, object]:
    """Processor, number of cores, memory, system, Python, versions of the installed packages."""
    information, processor = Path("/proc/cpuinfo"), platform.processor()
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        processor = names[0].split(":")[1].strip() if names else processor
    found = {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory, GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    versions = {package.name.lower(): package.version for package in metadata.distributions()}
    return found | {name: versions[name] for name in PACKAGES if name in versions}
