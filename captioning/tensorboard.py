"""What TensorBoard shows of a run: scores, captions beside their pictures, the words in space."""

import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captioning.captioner import Captioner
from captioning.encoders import load_thumbnail
from captioning.features import FeatureCache
from captioning.files import InputError, write_error, write_together
from captioning.pictures import captioned_sheet
from captioning.prepared import Prepared

SAMPLES = 6  # dev images whose captions are shown after every epoch
PICTURE_SIZE = 224  # pixels
PROJECTOR = """embeddings {
  tensor_name: "word vectors"
  tensor_path: "word_vectors.tsv"
  metadata_path: "metadata.tsv"
}
"""


class TensorBoard:
    """The log of a run.

    Args:
        folder: where TensorBoard will look (`tensorboard --logdir folder`).
        prepared: gives the dev images; their files are needed for pictures alone.
        cache: the features that are captioned.
        captioner: the model in training.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        prepared: Prepared,
        cache: FeatureCache,
        captioner: Captioner,
    ):
        """Open the log.

        Raises:
            InputError: the folder cannot be written.
        """
        self.folder, self._cache, self._captioner = Path(folder), cache, captioner
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = tf.summary.create_file_writer(str(folder))
        except (OSError, tf.errors.OpError) as error:
            raise write_error(folder, error) from None
        names = prepared.images("dev")
        readable = np.flatnonzero(cache.rows(names) >= 0)[:SAMPLES]
        self._names, self._pictures = [names[image] for image in readable], []
        try:
            for name in self._names:
                self._pictures.append(load_thumbnail(prepared.image_folder / name, PICTURE_SIZE))
        except InputError as error:
            self._pictures = []
            print(f"TensorBoard gets captions without pictures: {error}", file=sys.stderr)

    def add_epoch(self, row: dict) -> None:
        """Add the scores of an epoch, and what the model says of some dev images after it."""
        captions = self._captioner.caption_cached(self._cache, self._names)
        with self._writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if value is not None and name != "epoch":
                    tf.summary.scalar(name, value)
            lines = map(" | ".join, zip(self._names, captions, strict=True))
            table = ["image | caption", "--- | ---", *lines]
            tf.summary.text("sample captions as text", "\n".join(table))
            if self._pictures:
                sheet = FigureCanvasAgg(captioned_sheet(self._pictures, captions))
                sheet.draw()
                pixels = np.asarray(sheet.buffer_rgba())[None, ..., :3]  # (1, height, width, 3)
                tf.summary.image("sample captions", pixels)
        self._writer.flush()

    def add_word_vectors(self) -> None:
        """Write the word vectors as they are now, for the page Projector.

        Raises:
            InputError: the files cannot be written.
        """
        vectors = np.asarray(self._captioner.model.embedding.embeddings, np.float32)  # (V, E)
        rows = ("\t".join(f"{value:.5g}" for value in vector) for vector in vectors)
        words = map(_label, self._captioner.vocabulary.words)
        write_together(
            {
                self.folder / "word_vectors.tsv": "".join(f"{row}\n" for row in rows).encode(),
                self.folder / "metadata.tsv": "".join(f"{word}\n" for word in words).encode(),
                self.folder / "projector_config.pbtxt": PROJECTOR.encode(),
            }
        )


def _label(word: str) -> str:
    """A word as one cell of a table: a tab or a line's end, as characters may be, is spelled out.

    Half a surrogate pair, which UTF-8 lacks, becomes its escape.
    """
    word = repr(word) if not word.strip() or len(word.split()) > 1 else word
    return word.encode(errors="backslashreplace").decode()
