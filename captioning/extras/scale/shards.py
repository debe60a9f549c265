"""Feature extraction in shards, on several machines that see the same disk.

    image_extraction.ipynb with shard = "1/16" and so on, in any order, then
    python -m captioning shards merge prepared/features/<encoder>

A shard is a cache in a subfolder, such as shard-03-of-16. It starts where a batch does, so the
merged cache is byte for byte that of a single run.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from captioning.encoders import require_same_encoder
from captioning.errors import InputError, log
from captioning.features import BATCH_SIZE, MADE_BY, FeatureCache, extract_features, new_arrays
from captioning.files import locked, read_json


def extract_shard(shard: str, folder, image_folder, images, encoder, **options) -> FeatureCache:
    """Encode a part of `images`, such as "3/16", into a subfolder of the cache `folder`.

    The other arguments, as those of `extract_features`, must be the same for all shards.
    """
    batch_size = options.get("batch_size", BATCH_SIZE)
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"shard {shard!r}: expected e.g. 3/16, from 1/16 to 16/16, or nothing")
    batches = -(-len(images) // batch_size)
    if count > batches:
        sizes = f"{len(images):,} images are {batches:,} batches of {batch_size}"
        raise InputError(f"shard {shard}: {sizes}; use at most {batches:,} shards")
    first, end = (batches * part // count * batch_size for part in (number - 1, number))
    place = Path(folder, f"shard-{number:0{len(str(count))}}-of-{count}")
    return extract_features(place, image_folder, images[first:end], encoder, **options)


def merge_shards(folder: str | Path) -> FeatureCache:
    """Copy all shards in `folder` into one cache there; InputError if they are not a whole."""
    folder = Path(folder)
    places = sorted(folder.glob("shard-*-of-*"))
    if not places:
        raise InputError(f"{folder}: no shards; {MADE_BY} makes them with shard = 1/16 and so on")
    names = [place.name for place in places]
    count = int(names[0].rpartition("-")[2])
    expected = [f"shard-{n:0{len(str(count))}}-of-{count}" for n in range(1, count + 1)]
    if others := sorted({*names} - {*expected}):
        raise InputError(f"{folder}: {names[0]} and {others[0]}; remove those of one run")
    if missing := sorted({*expected} - {*names}):
        raise InputError(f"{folder}: {', '.join(missing[:9])} missing; make it with {MADE_BY}")
    with locked(folder):
        shards = [FeatureCache.open(place) for place in places]
        parts = [read_json(place / "index.json", MADE_BY) for place in places]
        for place, part in zip(places, parts, strict=True):
            require_same_encoder(place, part["encoder"], parts[0]["encoder"])
            if any(part[name] != parts[0][name] for name in ("mirrored", "arrays")):
                problem = f"mirrored or with a grid, unlike {names[0]}, or the reverse"
                raise InputError(f"{place}: {problem}; make one of them again")
        lists = ("images", "digests", "hashes")
        index = parts[0] | {name: [v for part in parts for v in part[name]] for name in lists}
        index["failed"] = {image: why for part in parts for image, why in part["failed"].items()}
        if len(set(index["images"])) < len(index["images"]):
            problem = "made from other lists of images, or with another batch_size; make them again"
            raise InputError(f"{folder}: some images are in two shards, which were {problem}")
        with new_arrays(folder, index) as arrays:
            for name, array in arrays.items():
                np.concatenate([getattr(shard, name) for shard in shards], out=array)
    return FeatureCache.open(folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m captioning shards`."""
    parser.add_argument("action", choices=["merge"], help="merge the shards of an extraction")
    help = "the cache that holds the shards, e.g. prepared/features/efficientnet_lite2"
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help=help)


def main(options: argparse.Namespace) -> None:
    """Merge the shards in each folder."""
    for folder in options.folders:
        cache = merge_shards(folder)
        counts = f"{len(cache.images):,} images, {len(cache.failed):,} of them unreadable"
        log(f"{folder}: {counts}; {folder}/shard-* may be removed now")
