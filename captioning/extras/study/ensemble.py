"""Several checkpoints as one model: their probabilities are averaged at every step."""

import math
from collections.abc import Sequence

import tensorflow as tf

from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.errors import InputError


class Ensemble:
    """What the searches need of a model, from several of one vocabulary."""

    has_attention = False  # each looks elsewhere

    def __init__(self, models: Sequence):
        self.models = models
        self.feature_shape = max((model.feature_shape for model in models), key=len)  # of a grid
        self.config = min((model.config for model in models), key=lambda config: config.max_words)
        self.compute_dtype = models[0].compute_dtype

    def encode_image(self, features):
        """Images (I, *feature_shape) -> what each model needs of them."""
        pooled = features if len(self.feature_shape) == 1 else tf.reduce_mean(features, axis=1)
        inputs = {self.feature_shape: features}
        return tuple(m.encode_image(inputs.get(m.feature_shape, pooled)) for m in self.models)

    def initial_state(self, count):
        """The states of all models, one after another."""
        return [part for model in self.models for part in model.initial_state(count)]

    def step(self, words, state, image):
        """As `MergeDecoder.step`: the log-probabilities are those of the mean probability."""
        scores, after = [], []
        for model, encoded in zip(self.models, image, strict=True):
            parts = len(model.initial_state(1))
            mine, state = state[:parts], state[parts:]
            mine_scores, mine = model.step(words, mine, encoded)
            scores.append(mine_scores)
            after += mine
        return tf.reduce_logsumexp(scores, axis=0) - math.log(len(scores)), after


def load_ensemble(paths: Sequence[str], encoder: str | None = None) -> Captioner:
    """Load checkpoints as one captioner, or raise InputError if they do not fit together."""
    checkpoints = [Checkpoint.load(path) for path in paths]
    first, pictures = checkpoints[0], set()
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        for what in ("vocabulary", "encoder"):
            if getattr(checkpoint, what) != getattr(first, what):
                raise InputError(f"{path}: has another {what} than {paths[0]}; both must be equal")
        pictures.update(checkpoint.facts.get("training pictures", []))
    model = Ensemble([checkpoint.model for checkpoint in checkpoints])
    facts = {"training pictures": sorted(pictures)}
    captioner = Captioner(Checkpoint(model, first.vocabulary, first.encoder, facts), encoder)
    captioner.source = ", ".join(map(str, paths))
    return captioner
