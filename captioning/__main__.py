"""`python -m captioning COMMAND`: everything that is not one of the four steps."""

import importlib
import runpy
import sys
from pathlib import Path

import captioning
from captioning.errors import ArgumentParser, run

COMMANDS = {  # name -> package in extras, help
    "caption": ("serve", "caption photographs, or folders of them"),
    "web": ("serve", "open a web page that captions photographs, on this machine"),
    "compare": ("study", "score two models on a split, and say whether they differ by chance"),
    "review": ("study", "let people compare the captions of two models, blind"),
    "train": ("", "fit the model on a prepared folder: train.py"),
    "download": ("scale", "download Flickr8k"),
    "export": ("serve", "write a checkpoint as a .tflite file, which captions without TensorFlow"),
    "shards": ("scale", "merge features that several machines extracted"),
}
INTERRUPTED = "stopped; all files that were written are complete: run the same command again"


def main(arguments: list[str]) -> int | None:
    """Run the command that the arguments name."""
    if arguments[:1] == ["train"]:  # a script, which parses its options before its slow imports
        from captioning.files import shipped

        sys.argv = arguments
        runpy.run_path(str(shipped("train.py")), run_name="__main__")
    parser = ArgumentParser(prog="python -m captioning", description="Caption photographs.")
    parser.add_argument("--version", action="version", version=captioning.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (package, text) in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=text.capitalize())
        if arguments[:1] == [name]:
            module = importlib.import_module(f"captioning.extras.{package}.{name}")
            module.add_arguments(subparser)
    options = parser.parse_args(arguments)
    return module.main(options)


def installed() -> None:
    """The installed commands: `caption`, `caption-train`, `caption-web`."""
    command = Path(sys.argv[0]).stem.rpartition("-")[2]
    run(lambda: main([command, *sys.argv[1:]]), INTERRUPTED)


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]), INTERRUPTED)
