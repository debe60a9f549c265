"""Feed mutated files to what reads a stranger's file: captions, vectors, pictures, models.

    python tests/fuzz.py --inputs 20000 --seed 0

Each input must be read or refused by InputError: no other exception, nothing that takes more than
five seconds, no memory beyond a limit. Input N of a target is the same for the same seed; what
fails is kept in build/fuzz/. Exit status 1 if anything failed.
"""

import argparse
import contextlib
import faulthandler
import gzip
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

import h5py
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from captioning.caption_files import (  # noqa: E402
    Quirks,
    read_caption_csv,
    read_caption_lines,
    read_flickr8k_splits,
    read_token_file,
)
from captioning.caption_json import read_coco, read_karpathy  # noqa: E402
from captioning.embeddings import read_vectors  # noqa: E402
from captioning.encoders import load_image  # noqa: E402
from captioning.files import InputError  # noqa: E402
from captioning.hdf5 import rewritten  # noqa: E402

SECONDS = 5
MEGABYTES = 1000  # of address space, beyond what the program has before the first input

# What the formats' own marks look like, and numbers that readers stumble over.
MARKS = [
    *(b"\t", b"\n", b"\r\n", b"#0", b"#", b",", b'"', b" ", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"nan", b"inf", b"-1", b"0", b"1e999", b"99999999999", b"../", b"\x80\x00", b"\xff" * 8),
    *(b"{", b"}", b"[", b"]", b"null", b"true", b'""', b"\xed\xa0\x80", b"\xe2\x80\xa8"),
]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """`data` after one to six small accidents."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        place = dice.randint(0, len(data))
        kind = dice.randrange(7)
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
        elif kind == 5:
            del data[place:]
        else:
            mark = dice.choice(MARKS)
            data[place : place + len(mark)] = mark
    return bytes(data)


# ---- targets: seeds, how one is changed, and the reader ------------------------------------------


def token_seeds() -> list[bytes]:
    rows = [f"{n}.jpg#{k}\tA dog runs , number {n} .\n" for n in range(5) for k in range(3)]
    return ["".join(rows).encode(), "\ufeffé.jpg#0\tÉté «x» 雪\r\n".encode() * 4]


def read_tokens(path: Path) -> None:
    read_token_file(path, Quirks())


def read_splits(path: Path) -> None:
    path.rename(path.with_name("Flickr_8k.trainImages.txt"))
    read_flickr8k_splits([path.parent], Quirks())


def csv_seeds() -> list[bytes]:
    return [b'image,caption\na.jpg,A dog\nb.jpg,"One, two, ""three"""\n' * 3, b"a.jpg,x\r\n" * 9]


def read_csv(path: Path) -> None:
    read_caption_csv(path, Quirks())


def line_seeds() -> list[bytes]:
    rows = ['{"image": "a.jpg", "caption": "A dog"}', '{"image": "b", "captions": ["x", "y"]}']
    pair = r'{"image": "é.jpg", "caption": "\ud83d\ude00 雪"}'  # of surrogates
    return ["\n".join(rows * 4).encode(), pair.encode()]


def read_json_lines(path: Path) -> None:
    read_caption_lines(path, Quirks())


def caption_json_seeds() -> list[bytes]:
    sentences = [{"raw": "A dog .", "tokens": ["a", "dog"]}, {"raw": "雪", "tokens": []}]
    karpathy = [
        {"filename": f"{n}.jpg", "filepath": "val2014", "split": split, "sentences": sentences}
        for n, split in enumerate(("train", "restval", "val", "test"))
    ]
    coco = {
        "info": {"year": 2014},
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)],
        "annotations": [{"id": n, "image_id": n % 3, "caption": f"A {n}"} for n in range(9)],
    }
    return [json.dumps(value).encode() for value in ({"images": karpathy, "dataset": "coco"}, coco)]


def read_caption_json(path: Path) -> None:
    """Whichever of the two it was: the other reader refuses a sound file, and may."""
    refused = []
    for reader in (read_karpathy, read_coco):
        try:
            reader(path, Quirks())
        except InputError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


WORDS = ["dog", "a", "hot dog", "été"]


def vector_seeds() -> list[bytes]:
    rows = "".join(f"{word} 0.5 -1e-3 3\n" for word in [*WORDS, "b", "c", "d"]).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.vec", rows)
    return [b"7 3\n" + rows, rows, gzip.compress(rows), archive.getvalue()]


def vector_suffix(data: bytes) -> str:
    return {b"\x1f\x8b": ".vec.gz", b"PK": ".zip"}.get(data[:2], ".vec")


def read_words(path: Path) -> None:
    named = path.with_name(f"x{vector_suffix(path.read_bytes())}")
    path.rename(named)
    read_vectors(named, WORDS)


def model_seeds() -> list[bytes]:
    from gensim.test.utils import datapath

    return [Path(datapath("toy-model.bin")).read_bytes()]


def read_model(path: Path) -> None:
    named = path.with_name("x.bin")
    path.rename(named)
    read_vectors(named, WORDS)


def picture_seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    colour = Image.fromarray(pixels)
    grey = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    seeds = []
    for picture, kind, options in (
        (colour, "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06"}),
        (colour, "JPEG", {"progressive": True}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {}),
        (grey, "PNG", {}),
        (colour.convert("P"), "GIF", {"save_all": True, "append_images": [colour.convert("P")]}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (colour.convert("F"), "TIFF", {}),
        (colour, "BMP", {}),
        (colour, "WEBP", {}),
        (colour, "PPM", {}),
        (colour, "ICO", {}),
    ):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        seeds.append(stream.getvalue())
    return seeds


def read_picture(path: Path) -> None:
    pixels = load_image(path, 24)
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8


def checkpoint_seeds() -> list[bytes]:
    from captioning.checkpoint import Checkpoint
    from captioning.model import MergeDecoder, ModelConfig
    from captioning.vocabulary import SPECIALS, Vocabulary

    seeds = []
    for attention, shape in (("none", (6,)), ("grid", (4, 6))):
        model = MergeDecoder(ModelConfig(6, shape, 3, units=4, attention=attention, heads=2))
        model.build_for_captions()
        encoder = {"name": "x", "image_size": 8, "grid_shape": [2, 2, 6], "fingerprint": "f"}
        vocabulary = Vocabulary([*SPECIALS, "a", "dog"], [0, 1, 1, 0, 1, 1])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.keras"
            Checkpoint(model, vocabulary, encoder, {}).save(path)
            seeds.append(path.read_bytes())
    return seeds


def mutated_checkpoint(data: bytes, dice: random.Random) -> bytes:
    """The archive changed as it is, or one of its members with right check sums."""
    way = dice.randrange(4)
    if way == 0:
        return mutated(data, dice)
    archive = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(archive, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if (way == 1 and name == "model.weights.h5") or (way == 2 and name == "config.json"):
                content = mutated(content, dice)
            elif way == 3 and name == "config.json":
                whole = json.loads(content)
                for _ in range(dice.randint(1, 3)):
                    change_value(whole, dice)
                content = json.dumps(whole).encode()
            new.writestr(name, content)
    return archive.getvalue()


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**40,
    1e300,
    "",
    "x",
    "../x",
    [],
    [[]],
    {},
    {"class_name": "Lambda"},
]


def change_value(value: object, dice: random.Random) -> None:
    """Put something else at one place somewhere in a JSON value."""
    while isinstance(value, dict | list) and value:
        key = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        if isinstance(value[key], dict | list) and value[key] and dice.random() < 0.9:
            value = value[key]
        elif dice.random() < 0.2:
            del value[key]
            return
        else:
            value[key] = dice.choice(VALUES)
            return


def read_checkpoint(path: Path) -> None:
    from captioning.checkpoint import Checkpoint

    named = path.with_name("x.keras")
    path.rename(named)
    Checkpoint.load(named)


def weight_seeds() -> list[bytes]:
    numbers = np.arange(60, dtype=np.float32).reshape(12, 5)
    packing = {"compression": "gzip", "shuffle": True, "chunks": (5, 5)}
    seeds = []
    for libver in ("earliest", "latest"):
        stream = io.BytesIO()
        with h5py.File(stream, "w", libver=libver) as file:
            file.create_dataset("layers/dense/vars/0", data=numbers)
            if libver == "earliest":
                file.create_dataset("layers/dense/vars/1", data=numbers, **packing)
            file["layers/dense/vars"].attrs["name"] = "dense"
            file.attrs["layer_names"] = [b"dense", b"dropout"]
        seeds.append(stream.getvalue())
    return seeds


def read_weights(path: Path) -> None:
    try:
        with rewritten(path.read_bytes(), 10_000_000) as copy:
            assert copy.stat().st_size < 20_000_000
    except ValueError as error:
        raise InputError(str(error)) from None


# target: its seeds, the mutation, the reader, its share of the inputs
TARGETS = {
    "token files": (token_seeds, mutated, read_tokens, 0.15),
    "caption CSV": (csv_seeds, mutated, read_csv, 0.1),
    "caption lines": (line_seeds, mutated, read_json_lines, 0.05),
    "caption JSON": (caption_json_seeds, mutated, read_caption_json, 0.1),
    "split lists": (token_seeds, mutated, read_splits, 0.1),
    "word vectors": (vector_seeds, mutated, read_words, 0.2),
    "FastText models": (model_seeds, mutated, read_model, 0.02),
    "pictures": (picture_seeds, mutated, read_picture, 0.21),
    "checkpoints": (checkpoint_seeds, mutated_checkpoint, read_checkpoint, 0.02),
    "weights": (weight_seeds, mutated, read_weights, 0.05),
}


# ---- the loop -----------------------------------------------------------------------------------


class TooSlowError(BaseException):
    """Not an Exception: no reader may take it for damage of the file."""


def too_slow(*_):
    raise TooSlowError(f"more than {SECONDS} seconds")


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEGABYTES * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def fuzz(target: str, inputs: int, seed: int, folder: Path) -> int:
    """Try `inputs` inputs on a target; how many failed."""
    make_seeds, mutate, read, _ = TARGETS[target]
    seeds = make_seeds()
    for data in seeds:  # sound files are read; what is imported late is there before the limit
        (folder / "input").write_bytes(data)
        read(folder / "input")
        for path in folder.iterdir():
            path.unlink()
    signal.signal(signal.SIGPROF, too_slow)
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory()
    outcomes, slowest, failed = Counter(), 0.0, 0
    for number in range(inputs):
        dice = random.Random(f"{seed} {target} {number}")
        data = mutate(dice.choice(seeds), dice)
        (folder / "input").write_bytes(data)
        # processor time, whatever else the machine does; and a limit for waiting and native code
        faulthandler.dump_traceback_later(20 * SECONDS, exit=True, file=sys.__stderr__)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        start = time.process_time()
        try:
            read(folder / "input")
            outcomes["read"] += 1
        except InputError as error:
            outcomes["refused"] += 1
            if len(str(error).splitlines()) > 2 or len(str(error)) > 2000:
                failed += complain(target, number, data, "the message is too long")
        except (Exception, TooSlowError):
            failed += complain(target, number, data, traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.process_time() - start)
        for path in folder.iterdir():
            path.unlink()
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    print(
        f"{target}: {inputs:,} inputs, {outcomes['read']:,} read, {outcomes['refused']:,} refused, "
        f"{failed:,} failed; the slowest took {slowest:.2f} s",
        flush=True,
    )
    return failed


def complain(target: str, number: int, data: bytes, what: str) -> int:
    """Keep the input and say what happened; 1, to be counted."""
    kept = ROOT / "build" / "fuzz" / f"{target.replace(' ', '-')}-{number}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(data)
    print(f"{target}, input {number}, kept as {kept}:\n{what}", flush=True)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="in total (default: 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--target", choices=TARGETS, help="this one alone (default: all)")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    failed = 0
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for target in [options.target] if options.target else TARGETS:
            share = 1 if options.target else TARGETS[target][3]
            failed += fuzz(target, round(share * options.inputs), options.seed, Path(folder))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
