"""`python -m captioning COMMAND`: everything that is not one of the four steps."""

import importlib
import sys

import captioning
from captioning.errors import ArgumentParser, run
from captioning.files import shipped

COMMANDS = {  # name -> (module, help)
    "caption": ("caption", "caption photographs, or folders of them"),
    "web": ("web", "a web page to caption photographs on this machine"),
    "download": ("download", "download Flickr8k"),
    "shards": ("shards", "merge features that several machines extracted"),
}
TRAIN = "train"
INTERRUPTED = "stopped; all files that were written are complete: run the same command again"


def main(arguments: list[str] | None = None) -> int | None:
    """Run the command that the arguments name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = ArgumentParser(prog="python -m captioning", description=captioning.__doc__)
    parser.add_argument("--version", action="version", version=captioning.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser(TRAIN, help="train.py: fit the model on a prepared folder", add_help=False)
    for name, (file, text) in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=text.capitalize())
        if name == command:
            module = importlib.import_module(f"captioning.extras.{file}")
            module.add_arguments(subparser)
    if arguments[:1] == [TRAIN]:
        return _train(arguments[1:])
    options = parser.parse_args(arguments)
    return module.main(options)


def _train(arguments: list[str]) -> None:
    """Run train.py as a script, which parses its arguments before it imports TensorFlow."""
    path = shipped("train.py")
    sys.argv = ["captioning train", *arguments]
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), {"__name__": "__main__"})


def caption() -> None:
    """The installed command `caption`."""
    sys.argv.insert(1, "caption")
    run(main, INTERRUPTED)


def train() -> None:
    """The installed command `caption-train`."""
    sys.argv.insert(1, TRAIN)
    run(main, INTERRUPTED)


def web() -> None:
    """The installed command `caption-web`."""
    sys.argv.insert(1, "web")
    run(main, INTERRUPTED)


if __name__ == "__main__":
    run(main, INTERRUPTED)
