"""The usual way that the benchmark measures against computes what this project computes."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.config import Config
from captioning.datasets import read_dataset
from captioning.encoders import load_encoder
from captioning.features import FeatureCache, extract_features
from captioning.images import load_image
from captioning.losses import cross_entropy
from captioning.model import MergeDecoder
from captioning.vocabulary import END, PAD, SPECIALS, START, Vocabulary
from tests.benchmarks import bench, limits, measuring, memory, scaling, synthetic, usual

WORDS, LONGEST = 12, 7
CAPTIONS = [
    [[START, 4, 5, 6, END], [START, 7, END, PAD, PAD]],
    [[START, 8, 8, END, PAD], [START, 9, 10, 11, END]],
]
ATTENTIONS = pytest.mark.parametrize("attention", ["none", "grid"])


def decoder(attention, channels=6, **changes):
    """A small model, every weight away from its start."""
    shape = (4, channels) if attention == "grid" else (channels,)
    config = Config(units=8, attention=attention, heads=2, max_words=8, **changes)
    model = MergeDecoder(config, WORDS, shape, embedding_size=5)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def examples(model):
    """Features, captions in a batch, their prefixes, targets, and the features of each."""
    shape = (len(CAPTIONS), *model.feature_shape)
    features = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    words = np.array(CAPTIONS, np.int32)
    captions = [caption[caption != PAD] for pair in words for caption in pair]
    prefixes, targets, owners = usual.expand(captions, LONGEST)
    return features, words, prefixes, targets, features[owners // 2]


# --- the usual way is honest ----------------------------------------------------------------------


@ATTENTIONS
def test_a_model_of_prefixes_predicts_what_one_pass_predicts(attention):
    model = decoder(attention)
    features, words, prefixes, targets, expanded = examples(model)
    theirs = usual.prefix_model(model, LONGEST)((prefixes, expanded), training=False)
    logits, ours, _ = model.target_logits(tf.constant(words), tf.constant(features))
    np.testing.assert_array_equal(targets, ours)
    assert np.std(logits) > 0.1
    np.testing.assert_allclose(theirs, logits, atol=1e-5)


@ATTENTIONS
def test_a_step_on_prefixes_is_a_step_on_captions(attention):
    model = decoder(attention, dropout=0.0)
    features, words, prefixes, targets, expanded = examples(model)
    theirs = usual.prefix_model(model, LONGEST, keras.optimizers.SGD(0.1))
    loss = usual.train_on_prefixes(theirs, prefixes, expanded, targets)
    with tf.GradientTape() as tape:
        total, _, count = cross_entropy(model, tf.constant(features), tf.constant(words), True, 0.1)
        mean = total / count
    gradients = tape.gradient(mean, model.trainable_variables)
    keras.optimizers.SGD(0.1).apply(gradients, model.trainable_variables)
    assert loss == pytest.approx(float(mean), abs=1e-5)
    for layer in theirs.layers:
        ours = getattr(model, layer.name, layer).get_weights()
        for one, other in zip(layer.get_weights(), ours, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@ATTENTIONS
def test_a_cnn_pass_per_word_gives_the_same_caption(attention, tiny_encoder, photographs):
    encoder = load_encoder(tiny_encoder)
    model = decoder(attention, channels=8)
    vocabulary = Vocabulary([*SPECIALS, *"abcdefgh"], [1] * WORDS)
    captioner = Captioner(Checkpoint(model, vocabulary, encoder.to_json(), {}))
    captioner.encoder = encoder
    cnn = usual.cnn_for(encoder, model.feature_shape)
    pixels = [load_image(path, encoder.image_size) for path in photographs]
    words = usual.prefix_model(model, longest=9)
    theirs = [usual.caption_with_a_cnn_pass_per_word(cnn, words, one, 8) for one in pixels]
    ours = captioner.caption_features(captioner.encode(pixels), beam_width=1)
    assert [vocabulary.decode(ids) for ids in theirs] == [caption.text for caption in ours]
    assert all(ids[-1] == END for ids in theirs)
    assert max(map(len, theirs)) > 2


def test_one_photograph_at_a_time_gives_the_same_features(tiny_encoder, photographs, tmp_path):
    encoder = load_encoder(tiny_encoder)
    names = [path.name for path in photographs]
    cache = extract_features(tmp_path / "cache", photographs[0].parent, names, encoder)
    for shape, ours in (((8,), cache.pooled), ((4, 8), cache.grid.reshape(-1, 4, 8))):
        cnn = usual.cnn_for(encoder, shape)
        theirs = usual.extract_one_by_one(cnn, photographs, encoder.image_size)
        assert theirs.std() > 0.01
        np.testing.assert_allclose(ours, theirs, atol=1e-5 if len(shape) == 1 else 1e-3)  # float16


def test_extraction_is_measured(tiny_encoder, photographs, tmp_path):
    stub = SimpleNamespace(photographs=photographs, folder=tmp_path, repetitions=1)
    rows = list(bench.one_extraction(stub, load_encoder(tiny_encoder)))
    assert len(rows) == 2
    assert all(value > 0 for row in rows for value in row.ours)


# --- the data and the figures ---------------------------------------------------------------------


def test_drawn_captions_are_as_long_as_those_of_flickr8k():
    lengths = synthetic.draw_lengths(4000, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(synthetic.MEAN_LENGTH, abs=0.2)
    assert lengths.std() == pytest.approx(synthetic.LENGTH_DEVIATION, abs=0.3)
    assert synthetic.SHORTEST <= lengths.min() < lengths.max() <= synthetic.LONGEST


def test_a_model_is_trained_on_drawn_data(tmp_path):
    encoder = synthetic.ENCODER | {"grid_shape": [2, 2, 8]}
    run = synthetic.Training(synthetic.write_prepared(tmp_path / "prepared", 12, encoder), "grid")
    assert run.model.vocabulary_size == synthetic.WORDS
    before = run.model.word_scores.get_weights()[0]
    assert run.train(2) > 0
    assert np.abs(run.model.word_scores.get_weights()[0] - before).max() > 0


def test_sparse_features_take_no_disk_space(tmp_path):
    folder = synthetic.write_prepared(tmp_path / "prepared", 300, sparse=True)
    cache = FeatureCache.open(folder / "features" / "synthetic")
    assert cache.grid.nbytes > 80e6
    assert (cache.folder / "grid.npy").stat().st_blocks * 512 < 1e6


@ATTENTIONS
def test_useful_arithmetic_is_that_of_all_kernels(attention):
    model, words, positions = decoder(attention), 20, 4
    rows = {"image_dense": 1 / 5}  # five captions share an image
    rows |= dict.fromkeys(("grid_dense", "key", "value"), positions / 5)
    total = sum(
        rows.get(layer.name, words) * int(np.prod(weight.shape))
        for layer in model.layers
        for weight in layer.weights
        if weight.path.endswith("kernel")
    )
    if attention == "grid":  # scores and sums over the positions
        total += words * 2 * positions * model.config.units
    assert limits.flops_per_caption(model, words) == pytest.approx(6 * total)


def test_jobs_alternate_and_rounds_belong_together():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    found = measuring.alternate(jobs, 2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_a_row_says_whether_its_target_was_met_and_by_how_much_not():
    met = measuring.Row("a", "x/s", [10.0], [2.0, 4.0, 3.0], 3)
    missed = measuring.Row("b", "ms", [10.0], [2.0, 2.4, 2.2], 2, at_least=False, note="a note")
    assert (met.median, met.verdict) == (3, "met")
    assert (missed.median, missed.verdict) == (2.2, "missed by 10%")
    text = measuring.table([met, missed])
    assert all(part in text for part in (">= 3 x", "2.20 x (2.00-2.40)  <= 2 x", "b: a note"))


@pytest.mark.skipif(not memory.AVAILABLE, reason="needs /proc")
def test_peak_memory_is_what_a_job_takes(tmp_path):
    path = tmp_path / "some.vec"
    synthetic.write_vectors(path, 3000, 300)
    few, many = (memory.peak("vectors", path, words) for words in (10, 3000))
    assert few < many < 100


def test_the_benchmark_runs_and_its_table_renders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(limits, "jpeg_speed", lambda *_: 1.0)
    monkeypatch.setattr(synthetic, "EMBEDDING_SIZE", 10)
    output = tmp_path / "figures.json"
    bench.main(["--quick", "--only", "vectors", "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith(row["name"]))
    assert line.endswith(row["verdict"])
    assert row["median"] > 0
    assert "of 1 targets met" in text


def test_preparing_is_measured_on_a_drawn_data_set(tmp_path):
    scaling.write_coco(tmp_path / "coco-60", 60)
    data = read_dataset(tmp_path / "coco-60")
    assert [len(data.splits[split]) for split in ("train", "dev", "test")] == [56, 2, 2]
    assert all(len(texts) == 5 for texts in data.captions.values())
    assert data.summary == {}
    found = scaling.preparing(tmp_path, 60, fasttext=False)
    assert found["captions"] == 300
    assert set(found["CPU seconds"]) == {"reading", "words", "word vectors", "writing"}
