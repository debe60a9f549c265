"""Draw how captions change during training: docs/epochs.jpg.

    PYTHONPATH=. python docs/draw_epochs.py weights images/dog-on-grass.jpg images/mariachi-band.jpg

captions the photographs with the checkpoints of a run after epochs 1, 5, 10 and at the end
(beam width 5). A minute.
"""

import argparse
from pathlib import Path

from captioning import Captioner
from captioning.extras.study.sheets import captioned_sheet
from captioning.images import load_thumbnail
from captioning.plots import save_figure

EPOCHS = (1, 5, 10)
SIDE = 480  # pixels


def main() -> None:
    """Caption, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("weights", type=Path, help="output folder of train.py")
    parser.add_argument("photographs", nargs="+", help="files")
    parser.add_argument("--output", default="docs/epochs.jpg", help="default: %(default)s")
    options = parser.parse_args()
    checkpoints = sorted(options.weights.glob("epoch-*.safetensors"))
    last = int(checkpoints[-1].stem.rpartition("-")[2])
    lines = [[] for _ in options.photographs]
    for epoch in sorted({*EPOCHS, last}):
        captioner = Captioner.load(options.weights / f"epoch-{epoch:03}.safetensors")
        for caption, texts in zip(captioner.caption(options.photographs), lines, strict=True):
            texts.append(f"{epoch}: {caption}")
    pictures = [load_thumbnail(path, SIDE) for path in options.photographs]
    sheet = captioned_sheet(pictures, ["\n".join(texts) for texts in lines])
    save_figure(sheet, options.output)


if __name__ == "__main__":
    main()
