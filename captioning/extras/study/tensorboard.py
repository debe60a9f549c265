"""The log of a training run for TensorBoard: curves, sample captions, word vectors."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.plugins.hparams import api as hparams

from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.errors import InputError, log
from captioning.extras.study.sheets import captioned_sheet
from captioning.features import FeatureCache
from captioning.files import replace_together, require_writable
from captioning.images import load_thumbnail
from captioning.prepared import Prepared

SAMPLES = 6  # dev images whose captions are logged after each epoch
SPACE = 'embeddings { tensor_name: "words" tensor_path: "vectors.tsv" metadata_path: "words.tsv" }'


class TensorBoard:
    """The log of a run in `folder`, or InputError; the first dev images are its samples."""

    def __init__(self, folder, prepared: Prepared, cache: FeatureCache, checkpoint: Checkpoint):
        self.folder, self._captioner = Path(folder), Captioner(checkpoint)
        rows = cache.rows(prepared.images("dev"))
        samples = np.flatnonzero(rows >= 0)[:SAMPLES]
        self._names = [prepared.images("dev")[sample] for sample in samples]
        self._features = cache.read(rows[samples], checkpoint.model.feature_shape)
        try:
            paths = [prepared.image_folder / name for name in self._names]
            self._pictures = [load_thumbnail(path, 448) for path in paths]
        except InputError as error:
            self._pictures = []
            log(f"TensorBoard gets captions without pictures: {error}")
        require_writable(self.folder / "vectors.tsv")
        self._writer = tf.summary.create_file_writer(str(folder))
        with self._writer.as_default(step=0):
            hparams.hparams(vars(checkpoint.model.config), trial_id=self.folder.name)

    def add_epoch(self, row: dict) -> None:
        """Log one row of the training history, and the greedy captions of the samples."""
        found = self._captioner.caption_features(self._features, beam_width=1)
        captions = [caption.text for caption in found]
        with self._writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if value is not None and name != "epoch":
                    tag = name if name.startswith(("dev_", "train_")) else f"train_{name}"
                    tf.summary.scalar(tag.replace("_", "/", 1), value)
            lines = map(" | ".join, zip(self._names, captions, strict=True))
            tf.summary.text("samples", "\n".join(["image | caption", "--- | ---", *lines]))
            for name, picture, caption in zip(self._names, self._pictures, captions, strict=False):
                canvas = FigureCanvasAgg(captioned_sheet([picture], [caption]))
                canvas.figure.set_dpi(80)  # of the size at which TensorBoard shows it
                canvas.draw()
                pixels = np.asarray(canvas.buffer_rgba())[None, ..., :3]  # (1, height, width, 3)
                tf.summary.image(f"samples/{name}", pixels)
        self._writer.flush()

    def add_word_vectors(self) -> None:
        """Write the word vectors as they are now, for the Projector page."""
        vectors = np.asarray(self._captioner.model.embedding.embeddings, np.float32)  # (V, E)
        rows = ["\t".join(f"{value:.5g}" for value in vector) for vector in vectors]
        words = self._captioner.vocabulary.words
        files = {"vectors.tsv": rows, "words.tsv": words, "projector_config.pbtxt": [SPACE]}
        texts = {name: "".join(f"{line}\n" for line in lines) for name, lines in files.items()}
        replace_together({self.folder / name: text.encode() for name, text in texts.items()})
