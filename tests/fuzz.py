"""Feed mutated files to the readers: captions, vectors, pictures, checkpoints, `.tflite` files.

    python tests/fuzz.py --inputs 20000 --seed 0

Each input is read or rejected by an InputError of one or two lines, within five seconds of
processor time and 1 GB of memory. What fails is kept in build/fuzz.
"""

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from captioning.checkpoint import Checkpoint  # noqa: E402
from captioning.config import Config  # noqa: E402
from captioning.datasets import read_dataset  # noqa: E402
from captioning.errors import InputError  # noqa: E402
from captioning.extras.data.vectors import read_vectors  # noqa: E402
from captioning.extras.serve.light import LightCaptioner, read_information, write_light  # noqa: E402
from captioning.files import read_tensors, tensor_bytes  # noqa: E402
from captioning.images import load_image  # noqa: E402
from captioning.model import MergeDecoder  # noqa: E402
from captioning.startup import quiet_stderr  # noqa: E402
from captioning.vocabulary import SPECIALS, Vocabulary  # noqa: E402

SECONDS = 5
MEGABYTES = 1000  # of address space, beyond what the program has before the first input
MARKS = [  # what the formats' own marks look like, and numbers that readers stumble over
    *(b"\t", b"\n", b"\r\n", b"#0", b"#", b",", b'"', b" ", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"nan", b"inf", b"-1", b"0", b"1e999", b"99999999999", b"../", b"\x80\x00", b"\xff" * 8),
    *(b"{", b"}", b"[", b"]", b"null", b"true", b'""', b"\xed\xa0\x80", b"\xe2\x80\xa8"),
]
VALUES = [None, True, -1, 0, 1, 2**40, 1e300, "", "x", "../x", [], [[]], {}]
ENCODER = {"name": "x", "image_size": 8, "grid_shape": [1, 1, 8], "fingerprint": "0" * 16}


def mutated(data: bytes, dice: random.Random) -> bytes:
    """`data` after one to six small accidents."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        place = dice.randint(0, len(data))
        kind = dice.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << dice.randrange(8)
        elif kind == 1 and data:
            data[place % len(data)] = dice.randrange(256)
        elif kind == 2:
            data[place:place] = dice.choice(MARKS)
        elif kind == 3:
            del data[place : place + dice.randint(1, 20)]
        elif kind == 4:
            data[place:place] = data[place : place + dice.randint(1, 200)] * dice.randint(1, 3)
        else:
            del data[place:]
    return bytes(data)


def change_value(value: object, dice: random.Random) -> None:
    """Put something else at one place somewhere in a JSON value."""
    while isinstance(value, dict | list) and value:
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        if isinstance(value[key], dict | list) and value[key] and dice.random() < 0.9:
            value = value[key]
        else:
            value[key] = copy.deepcopy(dice.choice(VALUES))  # which a later change must not meet
            return


def captions(name: str, text: str):
    """A seed and a reader of a caption file of that name, beside one picture."""

    def read(path: Path) -> None:
        Image.new("RGB", (2, 2)).save(path.with_name("a.jpg"))
        path.rename(path.with_name(name))
        read_dataset(path.parent)

    return [text.encode()], read


def pictures() -> list[bytes]:
    seeds = []
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        seeds.append(stream.getvalue())
    return seeds


def checkpoints() -> list[bytes]:
    words = [*SPECIALS, "a", "dog"]
    model = MergeDecoder(Config(units=4, max_words=5), len(words), (8,), 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        Checkpoint(model, Vocabulary(words, [1] * len(words)), ENCODER, {}).save(path)
        return [path.read_bytes()]


def mutated_checkpoint(data: bytes, dice: random.Random) -> bytes:
    """Bytes or values of the header changed."""
    if dice.random() < 0.5:
        return mutated(data, dice)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        header, tensors = read_tensors(file.name, "")
    header = json.loads(json.dumps(header))
    for _ in range(dice.randint(1, 3)):
        change_value(header, dice)
    return tensor_bytes(tensors, header)


def light_files() -> list[bytes]:
    """A small vocabulary behind a model of one operation."""
    import tensorflow as tf

    module = tf.Module()
    shape = tf.TensorSpec((1, 8, 8, 3), tf.uint8, "pixels")
    module.encode = tf.function(lambda pixels: {"features": pixels[0, 0]}, [shape])
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        tf.saved_model.save(module, folder, {"encode": module.encode})
        model = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
        words = [*SPECIALS, "a", "dog"]
        vocabulary = Vocabulary(words, [1] * len(words)).to_json()
        path = Path(folder, "a.tflite")
        information = {"config": {"attention": "none"}, "encoder": ENCODER}
        write_light(path, model, {**information, "vocabulary": vocabulary})
        return [path.read_bytes()]


def mutated_light_file(data: bytes, dice: random.Random) -> bytes:
    """Bytes or values of the JSON changed; never the model under a checksum that fits."""
    if dice.random() < 0.5:
        return mutated(data, dice)
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        path = Path(file.name)
        path.write_bytes(data)
        information = read_information(path)
        with zipfile.ZipFile(path) as archive:
            model = data[: archive.infolist()[0].header_offset]
        for _ in range(dice.randint(1, 3)):
            change_value(information, dice)
        write_light(path, model, information)
        return path.read_bytes()


TOKENS = "".join(f"a.jpg#{number}\ta dog runs {number} .\n" for number in range(5))
LINES = '{"image": "a.jpg", "caption": "a dog"}\n{"image": "a.jpg", "captions": ["x", "y"]}\n'
KARPATHY = json.dumps(
    {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog"}]}]}
)
VECTORS = [b"2 3\ndog 1 2 3\ncat 4 5 6\n", b"dog 1 2\ncat 3 4\n", b"dog\t1\t2\n"]
# target: its seeds, the reader, the mutation, its part of the inputs
TARGETS = {
    "token files": (*captions("Flickr8k.token.txt", TOKENS), mutated, 0.15),
    "caption CSV": (*captions("captions.csv", 'a.jpg,"A dog, wet"\na.jpg,b\n'), mutated, 0.1),
    "caption lines": (*captions("captions.jsonl", LINES), mutated, 0.1),
    "Karpathy's JSON": (*captions("dataset_flickr8k.json", KARPATHY), mutated, 0.2),
    "word vectors": (VECTORS, lambda path: read_vectors(path, ["dog"]), mutated, 0.2),
    "pictures": (pictures(), lambda path: load_image(path, 24), mutated, 0.2),
    "checkpoints": (checkpoints, Checkpoint.load, mutated_checkpoint, 0.05),
    "light files": (light_files, LightCaptioner, mutated_light_file, 0.05),
}


class TooSlowError(BaseException):
    """Not an Exception: no reader may take it for damage of the file."""


def too_slow(*_):
    raise TooSlowError(f"more than {SECONDS} seconds")


@contextlib.contextmanager
def limits(megabytes: int):
    """A limit on memory, and one on processor time that each input restarts."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + megabytes * 1_000_000
    signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)


def attempt(read, data: bytes) -> tuple[str, str]:
    """What became of one input, and what is wrong with that ("" if nothing)."""
    # processor time, whatever else the machine does; and a limit for native code
    faulthandler.dump_traceback_later(60 * SECONDS, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "input")
            path.write_bytes(data)
            read(path)
            return "read", ""
    except InputError as error:
        is_short = len(str(error).splitlines()) <= 2 and len(str(error)) < 2000
        return "rejected", "" if is_short else f"the message is too long: {error}"
    except (Exception, TooSlowError):
        return "failed", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def fuzz(target: str, inputs: int, seed: int) -> int:
    """Try `inputs` inputs on a target; returns how many failed."""
    seeds, read, mutate, _ = TARGETS[target]
    seeds = seeds() if callable(seeds) else seeds
    for data in seeds:  # sound files are read, and late imports happen before the limit
        assert attempt(read, data) == ("read", ""), attempt(read, data)
    outcomes, failed, started = Counter(), 0, time.process_time()
    with limits(MEGABYTES):
        for number in range(inputs):
            dice = random.Random(f"{seed} {target} {number}")
            data = mutate(dice.choice(seeds), dice)
            outcome, problem = attempt(read, data)
            outcomes[outcome] += 1
            if problem:
                kept = ROOT / "build" / "fuzz" / f"{target.replace(' ', '-')}-{number}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
                print(f"{target}, input {number}, kept as {kept}:\n{problem}", flush=True)
                failed += 1
    seconds = time.process_time() - started
    print(f"{target}: {inputs:,} inputs, {dict(outcomes)}, {failed} failed, {seconds:.0f} s")
    return failed


def main() -> int:
    """Fuzz every target, or one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="in total (default: 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--target", choices=TARGETS, help="this one alone (default: all)")
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    failed = 0
    for target in [options.target] if options.target else TARGETS:
        part = 1 if options.target else TARGETS[target][3]
        failed += fuzz(target, round(part * options.inputs), options.seed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
