"""The usual way that the benchmark measures against computes what this project computes."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.dataset import read_dataset
from captioning.encoders import encode_images, load_encoder, load_image
from captioning.features import FeatureCache, extract_features
from captioning.model import MergeDecoder, ModelConfig
from captioning.training import caption_loss
from captioning.vocabulary import END, PAD, SPECIALS, START, Vocabulary
from tests.benchmarks import bench, limits, measuring, memory, scaling, synthetic, usual

WORDS, LONGEST = 12, 7
CAPTIONS = [
    [[START, 4, 5, 6, END], [START, 7, END, PAD, PAD]],
    [[START, 8, 8, END, PAD], [START, 9, 10, 11, END]],
]
ATTENTIONS = pytest.mark.parametrize("attention", ["none", "grid"])


def decoder(attention, shape=None, **changes):
    """A small model, every weight away from its start."""
    shape = shape or ((4, 6) if attention == "grid" else (6,))
    config = ModelConfig(WORDS, shape, 5, units=8, attention=attention, heads=2, **changes)
    model = MergeDecoder(config)
    model.build_for_captions()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def prefix_decoder(model, longest=LONGEST):
    built = usual.prefix_model(model.config, longest)
    usual.copy_weights(model, built)
    return built


def examples(model):
    """Features, captions in a batch, and the captions one by one."""
    shape = (len(CAPTIONS), *model.config.feature_shape)
    features = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    words = np.array(CAPTIONS, np.int32)
    return features, words, [caption[caption != PAD] for pair in words for caption in pair]


# --- the usual way is honest --------------------------------------------------------------------


@ATTENTIONS
def test_a_model_of_prefixes_predicts_what_one_pass_predicts(attention):
    model = decoder(attention)
    features, words, captions = examples(model)
    prefixes, targets, owners = usual.expand(captions, LONGEST)
    expanded = prefix_decoder(model)((prefixes, features[owners // 2]), training=False)
    logits, ours, _ = model.real_word_logits(tf.constant(words), tf.constant(features))
    np.testing.assert_array_equal(targets, ours)
    assert np.std(logits) > 0.1
    np.testing.assert_allclose(expanded, logits, atol=1e-5)


@ATTENTIONS
def test_an_update_on_prefixes_is_an_update_on_captions(attention):
    still = dict.fromkeys(("word_dropout", "rnn_dropout", "image_dropout", "merge_dropout"), 0.0)
    model = decoder(attention, **still)
    features, words, captions = examples(model)
    prefixes, targets, owners = usual.expand(captions, LONGEST)
    expanded = prefix_decoder(model)
    usual.compile_model(expanded, keras.optimizers.SGD(0.1), label_smoothing=0.1)
    theirs = usual.train_on_prefixes(expanded, prefixes, features[owners // 2], targets)
    with tf.GradientTape() as tape:
        loss = caption_loss(model, tf.constant(features), tf.constant(words), True, 0.1)[0]
    gradients = tape.gradient(loss, model.trainable_variables)
    keras.optimizers.SGD(0.1).apply(gradients, model.trainable_variables)
    assert theirs == pytest.approx(float(loss), abs=1e-5)
    for layer in expanded.layers:
        for one, other in zip(
            layer.get_weights(), getattr(model, layer.name, layer).get_weights(), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-5)


@ATTENTIONS
def test_a_cnn_pass_a_word_gives_the_same_caption(attention, tiny_encoder, photographs):
    encoder = load_encoder(tiny_encoder)
    model = decoder(attention, shape=(4, 8) if attention == "grid" else (8,))
    vocabulary = Vocabulary((*SPECIALS, *"abcdefgh"), [1] * WORDS)
    captioner = Captioner(Checkpoint(model, vocabulary, encoder.describe(), {}))
    cnn = usual.cnn_for(encoder.model, encoder.image_size, model.config.feature_shape)
    pixels = [load_image(path, encoder.image_size) for path in photographs]
    built = prefix_decoder(model, longest=31)
    theirs = [usual.caption_with_a_cnn_pass_a_word(cnn, built, one, 30) for one in pixels]
    ours = captioner.caption_features(captioner.encode(pixels))
    assert [vocabulary.decode(ids) for ids in theirs] == [caption.text for caption in ours]
    assert all(ids[-1] == END for ids in theirs)
    assert max(map(len, theirs)) > 2


def test_one_photograph_at_a_time_gives_the_same_features(tiny_encoder, photographs, tmp_path):
    encoder = load_encoder(tiny_encoder)
    names = [path.name for path in photographs]
    cache = extract_features(tmp_path / "cache", photographs[0].parent, names, encoder)
    cnn = usual.cnn_for(encoder.model, encoder.image_size, encoder.grid_shape[-1:])
    pooled = usual.extract_one_by_one(cnn, photographs, encoder.image_size)
    assert pooled.std() > 0.01
    np.testing.assert_allclose(cache.pooled, pooled, atol=1e-5)
    pixels = np.stack([load_image(path, encoder.image_size) for path in photographs])
    whole = usual.cnn_for(encoder.model, encoder.image_size, (4, 8)).predict(pixels, verbose=0)
    np.testing.assert_allclose(encode_images(encoder, pixels).reshape(-1, 4, 8), whole, atol=1e-5)


# --- the data and the figures -------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    encoder = synthetic.describe_encoder() | {"grid_shape": [2, 2, 8]}
    return synthetic.write_prepared(tmp_path_factory.mktemp("drawn") / "prepared", 12, encoder)


def test_drawn_captions_are_as_long_as_those_of_flickr8k():
    lengths = synthetic.draw_lengths(4000, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(synthetic.MEAN_LENGTH, abs=0.2)
    assert lengths.std() == pytest.approx(synthetic.LENGTH_DEVIATION, abs=0.3)
    assert lengths.min() >= synthetic.SHORTEST
    assert lengths.max() <= synthetic.LONGEST


def test_a_model_is_taught_on_drawn_data(prepared, tmp_path):
    trainer = synthetic.make_trainer(prepared, tmp_path, "grid", epochs=1)
    assert trainer.model.config.vocabulary_size == synthetic.WORDS
    before = trainer.model.word_scores.get_weights()[0]
    taught = synthetic.teach(trainer, 2).model
    assert np.abs(taught.word_scores.get_weights()[0] - before).max() > 0


def test_sparse_features_take_no_room(tmp_path):
    folder = synthetic.write_prepared(tmp_path / "prepared", 300, sparse=True)
    cache = FeatureCache.open(folder / "features" / "drawn")
    assert cache.grid.nbytes > 80e6
    assert (cache.folder / "grid.npy").stat().st_blocks * 512 < 1e6


@ATTENTIONS
def test_useful_arithmetic_is_that_of_all_kernels(attention):
    model = decoder(attention)
    images, words, positions = 3, 20, 4
    rows = {"image_dense": images}
    rows |= dict.fromkeys(("grid_dense", "key", "value"), images * positions)
    total = 0
    for layer in model.layers:
        for weight in layer.weights:
            if weight.path.endswith("kernel"):
                total += rows.get(layer_name(model, layer), words) * int(np.prod(weight.shape))
    if attention == "grid":  # scores and sums over the positions
        total += words * 2 * positions * model.config.units
    assert limits.update_flops(model.config, images, words) == 6 * total


def layer_name(model, layer):
    return next(name for name, value in vars(model).items() if value is layer)


def test_jobs_alternate_and_rounds_belong_together():
    calls = []
    jobs = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    found = measuring.alternate(jobs, 2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_a_row_says_whether_its_target_was_met_and_by_how_much_not():
    met = measuring.Row("a", "x/s", [10.0], [2.0, 4.0, 3.0], 3)
    missed = measuring.Row("b", "ms", [10.0], [2.0, 2.4, 2.2], 2, at_least=False)
    assert (met.median, met.verdict) == (3, "met")
    assert (missed.median, missed.verdict) == (2.2, "missed by 10%")
    assert missed.to_json()["quartiles"] == [2.0, 2.4]
    of_numpy = measuring.Row("a", "x/s", list(np.ones(2)), list(np.ones(2)), np.float64(3))
    assert json.loads(json.dumps(of_numpy.to_json()))["met"] is False
    gone = measuring.left_out("c", "torch is not installed", 1)
    text = measuring.table([met, missed, gone])
    assert "left out: torch is not installed" in text
    assert ">= 3 x" in text
    assert "<= 2 x" in text


@pytest.mark.skipif(not memory.available(), reason="needs /proc")
def test_peak_memory_is_what_a_job_takes(tmp_path):
    path = tmp_path / "some.vec"
    synthetic.write_vectors(path, 3000, 300)
    few, many = (memory.peak("vectors", path, words) for words in (10, 3000))
    assert few < many < 100


def test_the_benchmark_runs_and_its_table_renders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure_limits", lambda _: {})
    monkeypatch.setattr(synthetic, "EMBEDDING_SIZE", 10)
    output = tmp_path / "figures.json"
    bench.main(["--quick", "--only", "vectors", "--output", str(output)])
    report = json.loads(output.read_text())
    assert [row["name"][:4] for row in report["rows"]] == [".vec", "memo"]
    text = capsys.readouterr().out
    for row in report["rows"]:
        line = next(line for line in text.splitlines() if line.startswith(row["name"]))
        assert line.endswith(row["verdict"])
        assert row["median"] > 0 or "memory" in row["name"]
    assert "of 2 targets met" in text


def test_preparing_is_measured_on_made_data_in_the_layout_of_coco(tmp_path):
    data = read_dataset(scaling.write_coco(tmp_path / "coco-60", 60))
    assert data.layout == "coco-2014"
    assert {split: len(names) for split, names in data.splits.items()} == {
        "train": 56,
        "dev": 2,
        "test": 2,
    }
    assert all(len(texts) == 5 for texts in data.captions.values())
    assert data.summary == {}
    found = scaling.preparing(str(tmp_path), "60", "drawn")
    assert found["captions"] == 300
    assert set(found["seconds"]) > {"reading", "words", "vocabulary", "writing"}
    assert found["total"] == pytest.approx(sum(found["seconds"].values()), abs=0.1)


def test_updates_are_timed_on_sparse_features(tmp_path, monkeypatch):
    encoder = synthetic.describe_encoder() | {"grid_shape": [2, 2, 8]}
    synthetic.write_prepared(tmp_path / "features-40", 40, encoder, sparse=True)
    monkeypatch.setattr(scaling, "WARM_UP", 1)
    monkeypatch.setattr(scaling, "UPDATES", 1)
    found = scaling.training(str(tmp_path), "40", "none")
    assert found["captions"] == 200
    assert found["captions a second"] > 0
    assert found["plan, seconds"] >= 0
