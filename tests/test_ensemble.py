"""Several checkpoints as one model: probabilities are averaged at every step."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import ENCODER
from test_decoding import FEATURES, MAX_WORDS, Scripted, totals

from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.decoding import beam_search, decode_greedily
from captioning.errors import InputError
from captioning.extras.study.ensemble import Ensemble, load_ensemble
from captioning.vocabulary import START


class Pair(Scripted):
    """What an ensemble of two scripted models is, by its definition."""

    def __init__(self, *models):
        self.table = np.log(np.mean([np.exp(model.table) for model in models], axis=0))


def scripted(seed):
    model = Scripted(seed)
    model.feature_shape, model.compute_dtype = (1,), "float32"
    model.config = SimpleNamespace(max_words=MAX_WORDS)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_the_searches_see_the_mean_probability(seed):
    models = [scripted(seed), scripted(seed + 100)]
    pair, ensemble = Pair(*models), Ensemble(models)
    for search in (
        lambda model: decode_greedily(model, FEATURES, MAX_WORDS),
        lambda model: beam_search(model, FEATURES, 3, 0.7, MAX_WORDS, n_best=2),
    ):
        expected, found = search(pair), search(ensemble)
        np.testing.assert_array_equal(found.words, expected.words)
        np.testing.assert_allclose(totals(found), totals(expected), atol=1e-4)


def test_models_with_and_without_attention_go_together(tiny_checkpoint, tiny_grid_checkpoint):
    alone, looking = Captioner.load(tiny_checkpoint), Captioner.load(tiny_grid_checkpoint)
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(6, 4, 8)).astype(np.float32)
    pooled = grid.mean(1)
    both = load_ensemble([tiny_checkpoint, tiny_grid_checkpoint])
    assert (both.model.feature_shape, both.has_attention) == ((4, 8), False)
    first = [c.model.step(tf.fill((6, 1), START), c.model.initial_state(6), c.model.encode_image(x))
             for c, x in ((alone, pooled), (looking, grid), (both, grid))]  # fmt: skip
    one, two, mean = (tf.exp(scores) for scores, _ in first)
    np.testing.assert_allclose(mean, (one + two) / 2, atol=1e-6)


def test_checkpoints_of_another_vocabulary_or_encoder_are_rejected(tiny_checkpoint, tmp_path):
    checkpoint = Checkpoint.load(tiny_checkpoint)
    words = [*checkpoint.vocabulary.words[:-1], "zebra"]
    other = type(checkpoint.vocabulary)(words, checkpoint.vocabulary.counts)
    for what, changed in (("vocabulary", other), ("encoder", ENCODER)):
        path = tmp_path / f"{what}.safetensors"
        parts = {"vocabulary": checkpoint.vocabulary, "encoder": checkpoint.encoder} | {
            what: changed
        }
        Checkpoint(checkpoint.model, **parts, facts={}).save(path)
        with pytest.raises(InputError, match=f"{what}.safetensors: has another {what} than .*"):
            load_ensemble([tiny_checkpoint, path])


def test_the_script_scores_several_models(
    script, tiny_checkpoint, tiny_grid_checkpoint, tiny_prepared, photographs, without_meteor
):
    models = ("--model", tiny_checkpoint, tiny_grid_checkpoint)
    status, out, _ = script("test.py", "--split", "dev", "--data", tiny_prepared, *models, "--json")
    assert status == 0
    assert json.loads(out)["model"] == f"{tiny_checkpoint}, {tiny_grid_checkpoint}"
    status, out, _ = script("test.py", "--image", photographs[0], *models, "--beam-width", 2)
    assert (status, len(out.splitlines())) == (0, 1)
