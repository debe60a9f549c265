"""Caption photographs, or score a split, with a trained model.

    python test.py --image photo.jpg holiday/ --model weights/best.keras
    python test.py --image photo.jpg --model weights/best.keras --beam-width 3 --save out.png
    python test.py --split dev --data prepared --model weights/best.keras --beam-width 3

Results go to stdout, everything else to stderr. Exit status: 0 done, 1 some of several images
could not be captioned, 2 wrong usage or input.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from captioning.cli import (
    ArgumentParser,
    import_tensorflow,
    not_negative_float,
    run,
    whole_number,
)
from captioning.files import InputError, require_writable, same_file

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
PICTURE_SIZE = 480  # pixels of the longer side of a photograph that is drawn
PAGE_SUFFIXES = (".html", ".htm")
BATCH_SIZE = 16  # photographs encoded at once
MAX_BEAM_WIDTH = 1000  # wider ones find nothing better and need memory in proportion


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see `--help`."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--image", nargs="+", metavar="FILE_OR_DIR", help="photographs, or folders of them"
    )
    what.add_argument("--split", help="score this split of --data, e.g. dev")
    add(
        "--model",
        metavar="CHECKPOINT",
        help="a checkpoint of train.py (default: data/pretrained/captioner.keras)",
    )
    add("--encoder", help="the model's encoder, if it is not where it was at training: a "
        ".keras file, or the weights of a named CNN (.h5)")  # fmt: skip
    add("--data", default="prepared", help="prepared folder, for --split (default: %(default)s)")
    add(
        "--beam-width",
        type=whole_number(1, MAX_BEAM_WIDTH),
        default=1,
        help="captions followed at once; 1 is greedy search (default: %(default)s)",
    )
    add(
        "--length-penalty",
        type=not_negative_float,
        help="0 to 10; beam search ranks by log-probability / words ** this: 0 favours short "
        "captions, 1 compares per word (default: 0.7, the best on the dev split of Flickr8k)",
    )
    add("--json", action="store_true", help="one JSON object a line instead of text")
    add("--save", metavar="OUT.png", help="with --image: draw the pictures with their captions")
    add(
        "--attention",
        action="store_true",
        help="with --save and one image: draw where the model looked for each word",
    )
    add("--report", metavar="OUT.html", help="with --split: a page with every image and caption")
    options = parser.parse_args(arguments)
    if options.save and not options.image:
        parser.error("--save goes with --image")
    if options.attention and not (options.save and len(options.image) == 1):
        parser.error("--attention goes with --save and one image")
    if options.report and not options.split:
        parser.error("--report goes with --split")
    return options


def main() -> int:
    """Do what the command line says; the exit status."""
    options = parse_arguments()
    paths = list_images(options.image) if options.image else []
    if options.save:
        require_output(options.save, PICTURE_SUFFIXES, paths)
    if options.report:
        require_output(options.report, PAGE_SUFFIXES)
    if options.attention and len(paths) != 1:
        raise InputError(f"--attention draws one picture, {len(paths)} were given; name one file")
    import_tensorflow()
    from captioning.captioner import LENGTH_PENALTY, Captioner

    if options.length_penalty is None:
        options.length_penalty = LENGTH_PENALTY
    captioner = Captioner.load(options.model, options.encoder)
    if options.attention and not captioner.has_attention:
        raise InputError("this model has no attention to draw; leave out --attention")
    if options.split:
        return score_split(captioner, options)
    return caption_images(captioner, paths, options)


def require_output(name: str, suffixes: tuple[str, ...], inputs: Sequence[Path] = ()) -> None:
    """Raise InputError unless a result can be written to `name`: better now than after the work."""
    path = Path(name)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{name}: expected a name ending in {', '.join(suffixes)}")
    if any(same_file(name, place) for place in inputs):
        raise InputError(f"{name}: is one of the photographs; choose another name for the result")
    require_writable(path)


def list_images(places: list[str]) -> list[Path]:
    """The files named, and the pictures in the folders named, in that order."""
    from PIL import Image

    suffixes = set(Image.registered_extensions())
    paths = []
    for place in map(Path, places):
        if not os.path.isdir(place):  # noqa: PTH112 - which takes any name, however long
            paths.append(place)
            continue
        found = sorted(
            path
            for path in place.iterdir()
            if path.suffix.lower() in suffixes
            and not path.name.startswith(".")
            and not path.is_dir()
        )
        paths += found or [place]
    return paths


def caption_images(captioner, paths: list[Path], options: argparse.Namespace) -> int:
    """Caption photographs a batch at a time; those that cannot be read are named."""
    from captioning.encoders import load_image, load_thumbnail

    shown, captions, bad = [], [], 0
    size = captioner.encoder.image_size
    for start in range(0, len(paths), BATCH_SIZE):
        good, pixels = [], []
        for path in paths[start : start + BATCH_SIZE]:
            try:
                if os.path.isdir(path):  # noqa: PTH112 - as above
                    raise InputError(f"{path}: a folder without pictures")
                pixels.append(load_image(path, size))
                good.append(path)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                bad += 1
        if not good:
            continue
        features = captioner.encode(pixels)
        found = captioner.caption_features(features, options.beam_width, options.length_penalty)
        for path, caption in zip(good, found, strict=True):
            if not caption.text:
                told = "the model has no word for it; train it for longer"
                print(f"{shown_name(path)}: {told}", file=sys.stderr)
            if options.json:
                line = {"image": str(path), "caption": caption.text}
                line["log_probability"] = caption.log_probability
                print(json.dumps(line, ensure_ascii=False), flush=True)
            else:
                print(f"{shown_name(path)}: {caption.text}", flush=True)
        if options.save:
            shown += [load_thumbnail(path, PICTURE_SIZE) for path in good]
            captions += [caption.text for caption in found]
    if options.save and shown:
        from captioning.pictures import save_attention, save_captioned

        if options.attention:
            maps = captioner.attention(features, captions)
            save_attention(options.save, shown[0], captions[0], maps[0])
        else:
            save_captioned(options.save, shown, captions)
    if not bad:
        return 0
    return 2 if len(paths) == 1 else 1


def shown_name(path: Path) -> str:
    """A file name in one line, whatever is in it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(path))


def score_split(captioner, options: argparse.Namespace) -> int:
    """Caption a split from cached features and print its scores."""
    from captioning.evaluation import PROTOCOL, build_report, evaluate
    from captioning.features import FeatureCache, cache_folder
    from captioning.prepared import Prepared

    prepared = Prepared(options.data)
    encoder = captioner.checkpoint.encoder
    cache = FeatureCache.open(cache_folder(options.data, encoder["name"]))
    beam_width, penalty = options.beam_width, options.length_penalty
    result = evaluate(captioner, prepared, options.split, cache, beam_width, penalty)
    facts = {
        "split": f"{options.split}, {len(result.images)} images ({prepared.split_origin})",
        "model": options.model or "data/pretrained/captioner.keras",
        "encoder": f"{encoder['name']}, {encoder['image_size']} x {encoder['image_size']}",
        "decoding": "greedy"
        if beam_width == 1
        else f"beam width {beam_width}, length penalty {penalty:g}",
        "protocol": PROTOCOL,
    }
    if result.floor:
        facts["floor"] = f"one caption for all: {result.floor}"
    if options.report:
        from captioning.report import write_report

        write_report(options.report, build_report(result, facts, captioner, prepared, cache))
        print(f"report: {options.report}", file=sys.stderr)
    if options.json:
        whole = {**result.scores, **facts, "baselines": result.rows, "diversity": result.diversity}
        print(json.dumps(whole, ensure_ascii=False))
        return 0
    for name, fact in facts.items():
        print(f"{name + ':':<10} {fact}")
    metrics = list(result.scores)
    print(f"\n{'':<30}" + "".join(f"{name:>9}" for name in metrics))
    for name, scores in {"this model": result.scores, **result.rows}.items():
        cells = (f"{scores[metric]:9.1f}" if metric in scores else " " * 9 for metric in metrics)
        print(f"{name:<30}" + "".join(cells))
    if "METEOR" not in metrics:
        print("METEOR is left out: it needs Java and pycocoevalcap")
    diversity = result.diversity
    print(
        f"\n{diversity['vocabulary']:,} different words, {diversity['distinct']:.0%} of the "
        f"captions distinct, {diversity['copied']:.0%} copied word for word from training, "
        f"{diversity['length']:.1f} words a caption"
    )
    return 0


if __name__ == "__main__":
    run(main, "stopped; what was printed is whole, nothing else was written; start again with")
