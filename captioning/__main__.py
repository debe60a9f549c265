"""`python -m captioning`: what there is, and how it is called."""

import argparse

import captioning
from captioning.cli import ArgumentParser, run

TEXT = f"""captioning {captioning.__version__}: give it a photograph, get a sentence.

Commands, each with --help (where it is not installed: python test.py, python train.py):
  caption --image photo.jpg                        a photograph, several, or folders of them
  caption --split dev --data prepared              score a split
  caption-train --epochs 20 --batch-size 128       fit the model on a folder that is prepared
  python -m captioning.web                         a page to drop photographs on
  python -m captioning.dataset download --to DIR   fetch Flickr8k

From Python:
  from captioning import Captioner
  Captioner.load().caption("photo.jpg", beam_width=5)

The notebooks that prepare a data set are in the repository: caption_extraction.ipynb and
image_extraction.ipynb."""


def main() -> None:
    """Print it; there is nothing to choose."""
    parser = ArgumentParser(
        prog="python -m captioning",
        description=TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    print(TEXT)


if __name__ == "__main__":
    run(main, "stopped; start again with")
