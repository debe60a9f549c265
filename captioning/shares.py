"""Feature extraction in shares, on several machines that see the same disk.

Share 3 of 16 is a feature cache of its own inside the cache it is a part of:

    prepared/features/<encoder>/share-03-of-16/
      share.json                  which share of which list of images it is
      index.json, pooled.npy ...  see captioning.features

A share begins and ends where a batch does. The CNN thus sees the very batches of a single run,
and the shares laid end to end,

    python -m captioning.shares merge prepared/features/<encoder>

are byte for byte what a single run makes (on machines that compute alike).
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from captioning.cli import ArgumentParser, run
from captioning.encoders import Encoder, require_same_encoder
from captioning.features import (
    BATCH_SIZE,
    MADE_BY,
    VERSION,
    FeatureCache,
    extract_features,
    finish_arrays,
    new_arrays,
    remove_arrays,
)
from captioning.files import InputError, exclusive, read_json, write_error, write_json

BLOCK = 1 << 24  # bytes that are copied at a time
SHOWN = 10  # missing shares that are named


def extract_share(
    shard: str,
    folder: str | os.PathLike,
    image_folder: str | os.PathLike,
    images: Sequence[str],
    encoder: Encoder,
    *,
    batch_size: int = BATCH_SIZE,
    **options,
) -> FeatureCache:
    """Encode a share of `images`, or all of them; see `extract_features`, which does the work.

    Args:
        shard: "3/16" for the third of sixteen shares; "" for all images.
        folder: the cache of all images; a share lies in a subfolder of it.
        image_folder: where the image files lie.
        images: all of them, on every machine in the same order.
        encoder: the CNN.
        batch_size: images per CNN pass; the same for all shares.
        **options: further ones of `extract_features`.

    Returns:
        the finished cache of the share.

    Raises:
        InputError: `shard` is no share; all images are asked for while shares lie there that have
            not been merged; whatever else `extract_features` cannot use.
    """
    folder, images = Path(folder), list(images)
    if not shard:
        if _share_folders(folder) and not (folder / "index.json").exists():
            raise InputError(
                f"{folder}: holds shares of an extraction; merge them with\n"
                f"python -m captioning.shares merge {folder}, or remove them to begin anew"
            )
        return extract_features(
            folder, image_folder, images, encoder, batch_size=batch_size, **options
        )
    number, count = parse_shard(shard)
    rows = share_rows(len(images), batch_size, number, count)
    share = {"number": number, "of": count, "first": rows.start, "list": _fingerprint(images)}
    width = len(str(count))
    place = folder / f"share-{number:0{width}}-of-{count}"
    if not (place / "share.json").exists() or _read_share(place) != share:
        write_json(place / "share.json", share)
    return extract_features(
        place, image_folder, images[rows], encoder, batch_size=batch_size, **options
    )


def parse_shard(shard: str) -> tuple[int, int]:
    """Read "3/16" as share 3 of 16.

    Raises:
        InputError: it is no share.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard, re.ASCII)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"shard {shard!r}: expected such as 3/16, from 1/16 to 16/16, or nothing")
    return number, count


def share_rows(images: int, batch_size: int, number: int, count: int) -> slice:
    """The rows of share `number` (from 1) of `count`: whole batches, as many in each as can be.

    Raises:
        InputError: there are fewer batches than shares.
    """
    batches = -(-images // batch_size)
    if count > batches:
        raise InputError(
            f"shard {number}/{count}: {images:,} images are {batches:,} batches of {batch_size}; "
            f"cut them into {batches:,} shares at most"
        )
    first, end = (batches * part // count * batch_size for part in (number - 1, number))
    return slice(first, min(end, images))


def merge_shares(folder: str | os.PathLike) -> FeatureCache:
    """Lay all shares in `folder` end to end; a finished cache of the same images is left alone.

    Bytes are copied from file to file, a block at a time. The shares stay; a merge that was killed
    is begun again.

    Raises:
        InputError: a share is missing, unfinished or there twice, or the shares do not belong
            together; names them. The disk is full, or another run holds the folder.
    """
    folder = Path(folder)
    places = _share_folders(folder)
    if not places:
        raise InputError(
            f"{folder}: no shares in it; they are made by {MADE_BY} with shard=1/16 and so on"
        )
    with exclusive(folder):
        shares = _open_shares(folder, places)
        first = shares[0]
        plan = {
            "version": VERSION,
            "encoder": first.encoder,
            "mirrored": first.mirrored,
            "has_grid": first.grid is not None,
            "images": [image for share in shares for image in share.images],
        }
        failed = {image: reason for share in shares for image, reason in share.failed.items()}
        if (folder / "index.json").exists():
            cache = FeatureCache.open(folder)
            if cache.images == plan["images"]:
                return cache
            raise InputError(
                f"{folder}: holds finished features of other images than its shares;\n"
                f"remove {folder / 'index.json'} to replace them, or else the shares"
            )
        _join(folder, plan, shares)
        finish_arrays(folder, plan, failed)
        return FeatureCache.open(folder)


def _join(folder: Path, plan: dict, shares: list[FeatureCache]) -> None:
    """Write the arrays of all shares under their unfinished names."""
    remove_arrays(folder)
    for name, array in new_arrays(folder, plan).items():
        path = folder / f"{name}.npy.part"
        try:
            with path.open("rb+") as target:
                target.seek(array.offset)
                for share in shares:
                    _append(share, name, target)
                target.flush()
                os.fsync(target.fileno())
        except OSError as error:
            raise write_error(path, error) from error


def _append(share: FeatureCache, name: str, target) -> None:
    """Copy the numbers of one array of a share, without the header of its file."""
    array = getattr(share, name)
    with (share.folder / f"{name}.npy").open("rb") as source:
        source.seek(array.offset)
        left = array.nbytes
        while left and (block := source.read(min(BLOCK, left))):
            target.write(block)
            left -= len(block)
    if left:
        raise InputError(f"{share.folder / name}.npy: has become shorter; run {MADE_BY} again")


def _share_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("share-*/share.json"))


def _read_share(place: Path) -> dict:
    share = read_json(place / "share.json", MADE_BY)
    kinds = {"number": int, "of": int, "first": int, "list": str}
    if not isinstance(share, dict) or not all(
        type(share.get(key)) is kind for key, kind in kinds.items()
    ):
        raise InputError(f"{place / 'share.json'}: damaged; remove {place} and make it again")
    return share


def _open_shares(folder: Path, places: list[Path]) -> list[FeatureCache]:
    """All shares, in order, once it is certain that they are all and belong together."""
    shares = {place: _read_share(place) for place in places}
    counts = sorted({share["of"] for share in shares.values()})
    if len(counts) > 1:
        raise InputError(
            f"{folder}: holds shares of {' and of '.join(map(str, counts))}; remove those that "
            "are not to be merged"
        )
    by_number: dict[int, Path] = {}
    for place, share in shares.items():
        if other := by_number.get(share["number"]):
            label = f"share {share['number']} of {share['of']}"
            twice = f"{other.name} and as {place.name}"
            raise InputError(f"{folder}: {label} is there twice, as {twice}; remove one of them")
        by_number[share["number"]] = place
    missing = [str(n) for n in range(1, counts[0] + 1) if n not in by_number]
    if missing:
        named = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise InputError(
            f"{folder}: share {named} of {counts[0]} is missing; "
            f"make it with {MADE_BY}, shard={missing[0]}/{counts[0]}"
        )
    ordered = [by_number[number] for number in sorted(by_number)]
    caches = [FeatureCache.open(place) for place in ordered]
    _require_one_run(caches, [shares[place] for place in ordered])
    return caches


def _require_one_run(caches: list[FeatureCache], shares: list[dict]) -> None:
    """Raise InputError unless all shares are of one encoder and of one list of images."""
    first, row = caches[0], 0
    for cache, share in zip(caches, shares, strict=True):
        require_same_encoder(cache.folder, cache.encoder, first.encoder)
        if _kind(cache) != _kind(first):
            raise InputError(
                f"{cache.folder}: {_kind(cache)}, but {first.folder.name}: {_kind(first)}; "
                "make one of them again"
            )
        if share["list"] != shares[0]["list"] or share["first"] != row:
            raise InputError(
                f"{cache.folder}: cut from another list of images, or with another batch_size, "
                "than the shares before it; make it again as those were made"
            )
        row += len(cache.images)
    if _fingerprint([image for cache in caches for image in cache.images]) != shares[0]["list"]:
        raise InputError(
            f"{first.folder.parent}: its shares end to end are not the list of images that "
            "they were cut from; make them again"
        )


def _kind(cache: FeatureCache) -> str:
    mirrored = "mirrored" if cache.mirrored else "not mirrored"
    return f"{mirrored}, {'with' if cache.grid is not None else 'without'} grid"


def _fingerprint(names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m captioning.shares`; returns the exit status."""
    parser = ArgumentParser(
        prog="python -m captioning.shares", description="Put features together."
    )
    commands = parser.add_subparsers(required=True)
    merge = commands.add_parser("merge", help="make one cache of the shares of an extraction")
    merge.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="the cache that holds the shares, such as prepared/features/efficientnet_lite2",
    )
    for folder in parser.parse_args(arguments).folders:
        cache = merge_shares(folder)
        print(
            f"{cache.folder}: {len(cache.images):,} images, {len(cache.failed):,} of them "
            f"unreadable; {cache.folder}/share-* may be removed now",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    run(main, "stopped; the shares are as they were, begin again with")
