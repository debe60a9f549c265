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

from captioning.encoders import load_image
from captioning.model import ModelConfig

PACKAGES = ("tensorflow", "keras", "numpy", "pillow", "gensim", "torch")
COPY_BYTES = 512 << 20  # more than the caches of most machines hold


def rate(work: Callable[[], object], amount: float, seconds: float) -> list[float]:
    """Call `work` for about `seconds`; `amount` per second of every call, the first left out."""
    work()
    rates, until = [], time.perf_counter() + seconds
    while not rates or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - start))
    return rates


def layer_products(config: ModelConfig, images: int, words: int) -> dict[str, tuple[int, int, int]]:
    """The matrix products (rows, inner, columns) of an update's forward pass, a name each.

    Args:
        config: the model.
        images: in an update.
        words: predicted words in an update.
    """
    units, channels = config.units, config.feature_shape[-1]
    products = {
        "words into the RNN": (words, config.embedding_size, 3 * units),
        "RNN, one step": (max(1, words // 12), units, 3 * units),
        "words into the merge": (words, units, units),
        "word scores": (words, units, config.vocabulary_size),
        "images into the merge": (images, channels, units),
    }
    if config.attention == "grid":
        positions = images * config.feature_shape[0]
        products["grid"] = (positions, channels, units)
        products["keys, values"] = (positions, units, units)
    return products


def update_flops(config: ModelConfig, images: int, words: float) -> float:
    """The useful arithmetic of an update: its matrix products alone, nothing for pads.

    A multiplication and an addition count as two. The backward pass costs twice the forward pass:
    a product for the gradient of the input and one for that of the weights.

    Args:
        config: the model, whose RNN is a GRU.
        images: in the update.
        words: predicted words in the update.
    """
    units, channels = config.units, config.feature_shape[-1]
    a_word = 3 * units * (config.embedding_size + units)  # the GRU
    a_word += units * (units + config.vocabulary_size)
    an_image = channels * units
    if config.attention == "grid":
        positions = config.feature_shape[0]
        a_word += 3 * units * units + 2 * positions * units  # query, gate, context; attention
        an_image += positions * (channels + 2 * units) * units
    return 3 * 2 * (words * a_word + images * an_image)


def matrix_product(shape: tuple[int, int, int], dtype: str) -> tuple[Callable[[], object], float]:
    """A function that multiplies (rows, inner, columns), and how many GFLOP that takes."""
    rows, inner, columns = shape
    a = tf.cast(tf.random.normal((rows, inner)), dtype)
    b = tf.cast(tf.random.normal((inner, columns)), dtype)
    repeats = max(1, int(5e8 / (rows * inner * columns)))  # a small one would time the call

    def multiply():
        for _ in range(repeats):
            product = tf.matmul(a, b)
        return product[0, 0].numpy()

    return multiply, repeats * 2e-9 * rows * inner * columns


def peak(products: dict, dtype: str, seconds: float) -> dict[str, float]:
    """GFLOP/s of each product, the median of about `seconds` each."""
    found = {}
    for name, shape in products.items():
        work, gflop = matrix_product(shape, dtype)
        found[name] = statistics.median(rate(work, gflop, seconds))
    return found


def memory_bandwidth(seconds: float) -> float:
    """GB/s read and written by copying large arrays, a thread a processor."""
    threads = os.cpu_count()
    size = COPY_BYTES // threads
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def copy():
            return list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        return statistics.median(rate(copy, 2e-9 * size * threads, seconds))


def jpeg_speed(paths: list[Path], size: int, seconds: float) -> dict[str, float]:
    """JPEGs per second: decoded whole in one thread; opened as an encoder needs them, in all."""

    def decode():
        for path in paths:
            with Image.open(path) as image:
                image.convert("RGB")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        opened = rate(
            lambda: list(pool.map(lambda path: load_image(path, size), paths)), len(paths), seconds
        )
    return {
        "decoded, one thread": statistics.median(rate(decode, len(paths), seconds)),
        f"opened at {size} x {size}, all threads": statistics.median(opened),
    }


def machine() -> dict[str, object]:
    """Processor, number of cores, memory, load, Python."""
    model = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """The version of each package that matters and is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
