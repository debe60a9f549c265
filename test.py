"""Caption photographs, or score a split, with a trained model.

    python test.py --image photo.jpg holiday/ --model weights/best.safetensors
    python test.py --image photo.jpg --beam-width 5 --save out.png
    python test.py --split dev --data prepared --model weights/best.safetensors --beam-width 5

Results go to stdout, everything else to stderr. Exit status: 0 done, 1 some of several images
could not be captioned, 2 wrong usage or input. A photograph takes some seconds, nearly all of them
to start TensorFlow; with a .tflite file as --model, half a second.
"""

import argparse
import json
from pathlib import Path

from captioning.config import add_search_options
from captioning.errors import ArgumentParser, InputError, log, run

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
PICTURE_SIZE = 480  # pixels of the longer side of a photograph that is drawn
PAGE_SUFFIXES = (".html", ".htm")
PRETRAINED = "data/pretrained/captioner.safetensors"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see --help."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", nargs="+", metavar="FILE_OR_DIR", help="photographs or folders")
    what.add_argument("--split", help="score this split of --data, e.g. dev")
    add("--model", nargs="+", default=[], metavar="FILE", help="a checkpoint of train.py; several"
        " (their probabilities are averaged); or, for --image, a .tflite file that was exported"
        f" from one (default: {PRETRAINED})")  # fmt: skip
    add("--encoder", metavar="FILE", help="the model's encoder if it is not where it was in"
        " training: a .keras file, or the .h5 weights of a named CNN")  # fmt: skip
    add("--data", default="prepared", help="prepared folder for --split (default: %(default)s)")
    add_search_options(parser, width=1)
    add("--names", action="store_true", help="name what an ImageNet classifier is sure of, as the"
        " caption command does")  # fmt: skip
    add("--json", action="store_true", help="one JSON object per line instead of text")
    add("--save", metavar="OUT.png", help="with --image: draw the photographs with their captions")
    add("--attention", action="store_true", help="with --save and one image: draw where the model"
        " looked for each word")  # fmt: skip
    add("--report", metavar="OUT.html", help="with --split: a page with every image and caption")
    add("--compare", metavar="CHECKPOINT", help="with --report: a second model beside the first")
    add("--coco-results", metavar="OUT.json", help="with --split: its captions for COCO's tools")
    options = parser.parse_args(arguments)
    needs = {"save": "image", "attention": "save", "report": "split", "compare": "report"}
    for name, needed in (needs | {"coco_results": "split"}).items():
        if getattr(options, name) and not getattr(options, needed):
            parser.error(f"--{name.replace('_', '-')} goes with --{needed}")
    return options


def main() -> int:
    """Do what the command line says; returns the exit status."""
    options = parse_arguments()
    from captioning import LIGHT_SUFFIX, load_captioner
    from captioning.files import require_writable
    from captioning.images import list_images

    paths = list_images(options.image or [])
    outputs = {options.save: PICTURE_SUFFIXES, options.report: PAGE_SUFFIXES}
    for output, suffixes in (outputs | {options.coco_results: (".json",)}).items():
        if output and Path(output).suffix.lower() not in suffixes:
            raise InputError(f"{output}: expected a name ending in {', '.join(suffixes)}")
        if output and Path(output).resolve() in [path.resolve() for path in paths]:
            raise InputError(f"{output}: is one of the photographs; choose another name")
        if output:
            require_writable(output)
    if options.attention and len(paths) != 1:
        raise InputError(f"--attention draws one picture, {len(paths)} were given")
    if options.split and "".join(options.model).endswith(LIGHT_SUFFIX):
        raise InputError(f"{options.model[-1]}: --split needs a checkpoint of train.py")
    captioner = load_captioner(*options.model, encoder=options.encoder, names=options.names)
    if options.attention and not captioner.has_attention:
        raise InputError("this model has no attention to draw; leave out --attention")
    if options.split:
        return score_split(captioner, options)
    return caption_images(captioner, paths, options)


def caption_images(captioner, paths: list[Path], options: argparse.Namespace) -> int:
    """Print a caption for each photograph; those that cannot be read are named on stderr."""
    names = ("beam_width", "length_penalty", "consensus")
    search = {name: getattr(options, name) for name in names}
    captions = list(captioner.print_captions(paths, options.json, **search))
    if options.save and captions:
        from captioning.extras.study.sheets import attention_sheet, captioned_sheet
        from captioning.images import load_image, load_thumbnail
        from captioning.plots import save_figure

        texts = [caption.text for _, caption in captions]
        pictures = [load_thumbnail(path, PICTURE_SIZE) for path, _ in captions]
        if options.attention:
            features = captioner.encode([load_image(paths[0], captioner.image_size)])
            maps = captioner.attention(features, texts)
            sheet = attention_sheet(pictures[0], captions[0][1].words, maps[0])
        else:
            sheet = captioned_sheet(pictures, texts)
        save_figure(sheet, options.save)
        log(f"wrote {options.save}")
    return 0 if len(captions) == len(paths) else 1 if len(paths) > 1 else 2


def score_split(captioner, options: argparse.Namespace) -> int:
    """Caption a split from cached features and print its scores."""
    from captioning.evaluation import PROTOCOL, evaluate
    from captioning.extras.study.bootstrap import intervals, score_table

    encoder = captioner.checkpoint.encoder
    search = (options.beam_width, options.length_penalty, 1, options.consensus)
    decoding = f"beam width {options.beam_width}, length penalty {options.length_penalty:g}"
    decoding += f", consensus with {options.consensus}" if options.consensus else ""
    result = evaluate(captioner, options.data, options.split, *search)
    facts = {
        "split": f"{options.split}, {len(result.images)} images ({result.prepared.split_origin})",
        "model": ", ".join(options.model) or PRETRAINED,
        "encoder": f"{encoder['name']}, {encoder['image_size']} x {encoder['image_size']}",
        "decoding": decoding if options.beam_width > 1 else "greedy",
        "protocol": PROTOCOL,
    }
    if options.names:
        facts["names"] = f"given to {captioner.named} captions"
    if result.floor:
        facts["constant caption"] = result.floor
    if options.report:
        from captioning.extras.study.report import build_report, write_report

        other = None
        if options.compare:
            second = type(captioner).load(options.compare, options.encoder, options.names)
            other = evaluate(second, options.data, options.split, *search)
            facts["compared with"] = options.compare
        write_report(options.report, build_report(result, facts, captioner, other))
        log(f"wrote {options.report}")
    if options.coco_results:
        from captioning.extras.study.coco import write_results

        write_results(options.coco_results, result.images, result.captions)
    certainty = intervals(result.statistics)
    if options.json:
        whole = {**result.scores, "intervals": certainty, **facts}
        whole |= {"baselines": result.rows, "diversity": result.diversity}
        print(json.dumps(whole, ensure_ascii=False))
    else:
        print(score_table(result, certainty, facts))
    return 0


if __name__ == "__main__":
    run(main, "stopped; the lines that were printed are complete: run the same command again")
