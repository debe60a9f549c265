"""From photographs or cached features to captions, through the public interface."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import picture_hash
from PIL import Image

from captioning.captioner import DECODED_AT_ONCE, Captioner
from captioning.decoding import beam_search
from captioning.encoders import load_encoder
from captioning.errors import InputError
from captioning.evaluation import evaluate
from captioning.metrics import scoring_tokens
from captioning.prepared import Prepared
from captioning.vocabulary import END, PAD, START, UNKNOWN

MAX_WORDS = 30  # of the tiny prepared folder


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint):
    return Captioner.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def looking(tiny_grid_checkpoint):
    return Captioner.load(tiny_grid_checkpoint)


def random_features(captioner, images, seed=0):
    shape = (images, *captioner.model.feature_shape)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def greedy_words(predict, features):
    """Greedy search of one image in plain Python, over whole captions: no state, no batch."""
    words, total = [START], 0.0
    while len(words) <= MAX_WORDS + 1 and words[-1] != END:
        padded = words + [PAD] * (MAX_WORDS + 1 - len(words))
        logits = predict(tf.constant([[padded]]), tf.constant(features[None]))
        scores = tf.nn.log_softmax(logits[0, 0, len(words) - 1]).numpy()
        allowed = scores.copy()
        allowed[[PAD, START, UNKNOWN]] = -np.inf
        word = int(allowed.argmax()) if len(words) <= MAX_WORDS else END
        words.append(word)
        total += scores[word]
    return words[1:-1], total


@pytest.mark.parametrize("attention", [False, True])
def test_a_beam_of_one_is_greedy_search(captioner, looking, attention):
    one = looking if attention else captioner
    predict = tf.function(one.model)
    features = random_features(one, 5)
    found = one.caption_features(features, beam_width=1)
    assert len({caption.text for caption in found}) > 2
    for caption, feature in zip(found, features, strict=True):
        words, total = greedy_words(predict, feature)
        assert caption.text == one.vocabulary.decode(words)
        assert caption.log_probability == pytest.approx(total, abs=1e-3)
        assert caption.words == tuple(caption.text.split())
        assert len(caption.probabilities) == len(caption.words) + 1
        assert caption.confidence == pytest.approx(
            np.exp(total / len(caption.probabilities)), abs=1e-3
        )


def test_a_beam_gives_the_best_of_its_search(captioner):
    features = random_features(captioner, 4)
    found = captioner.caption_features(features, beam_width=3, length_penalty=0.5)
    best = beam_search(captioner.model, tf.constant(features), 3, 0.5, MAX_WORDS)
    totals = best.log_probabilities.numpy().sum(-1)[:, 0]
    for row, (caption, total) in enumerate(zip(found, totals, strict=True)):
        assert caption.text == captioner.vocabulary.decode(best.words[row, 0].numpy().tolist())
        assert caption.log_probability == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("width", [1, 3])
def test_a_batch_of_images_equals_its_singles(looking, width):
    features = random_features(looking, 20)
    together = looking.caption_features(features, width)
    for caption, feature in zip(together, features, strict=True):
        (alone,) = looking.caption_features(feature[None], width)
        assert alone.text == caption.text
        assert alone.log_probability == pytest.approx(caption.log_probability, abs=1e-4)


def test_more_images_than_a_batch_and_none_at_all(captioner):
    features = np.repeat(random_features(captioner, 2), [DECODED_AT_ONCE, 3], axis=0)
    captions = captioner.caption_features(features, 1)
    assert len(captions) == DECODED_AT_ONCE + 3
    assert len({caption.text for caption in captions[:DECODED_AT_ONCE]}) == 1
    assert captioner.caption_features(features[:0], 1) == []


def test_features_may_be_of_another_float_type(captioner):
    features = random_features(captioner, 3).astype(np.float16)
    expected = captioner.caption_features(features.astype(np.float32), 1)
    found = captioner.caption_features(features, 1)
    assert [caption.text for caption in found] == [caption.text for caption in expected]


def test_photographs_are_captioned_from_the_features_of_their_encoder(
    captioner, looking, photographs, tiny_encoder
):
    cnn = load_encoder(tiny_encoder).model
    for one, axes in ((captioner, (1, 2)), (looking, None)):
        captions = one.describe(photographs, beam_width=2)
        pixels = [
            np.asarray(Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
            for path in photographs
        ]
        grid = np.asarray(cnn(np.stack(pixels).astype(np.float32)))
        features = grid.mean(axes) if axes else grid.reshape(3, 4, 8)
        if axes:
            # A JPEG may be decoded at a smaller scale, so only the others are exactly the same.
            expected = one.caption_features(features[[0, 2]], 2)
            assert [captions[0].text, captions[2].text] == [caption.text for caption in expected]
        assert [one.caption(path, beam_width=2) for path in photographs] == [
            caption.text for caption in captions
        ]


def test_another_encoder_is_refused_by_both_names(tiny_checkpoint, tmp_path, tiny_encoder):
    import keras

    other = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 16, strides=16)])
    other.save(tmp_path / "other.keras")
    captioner = Captioner.load(tiny_checkpoint, tmp_path / "other.keras")
    with pytest.raises(InputError) as error:
        _ = captioner.encoder
    assert str(tiny_encoder) in str(error.value)
    assert "other.keras" in str(error.value)
    moved = tmp_path / "moved.keras"
    shutil.copy(tiny_encoder, moved)
    assert Captioner.load(tiny_checkpoint, moved).encoder.name == str(moved)


def test_attention_has_a_map_for_every_word(looking):
    features = random_features(looking, 2)
    captions = ["a red dog", "a dog", ""]
    maps = looking.attention(features[[0, 1, 1]], captions)
    assert [one.shape for one in maps] == [(3, 2, 2), (2, 2, 2), (0, 2, 2)]
    for one in maps[:2]:
        np.testing.assert_allclose(one.sum((1, 2)), 1, atol=1e-5)
    # the map of a word is where the model looked when it chose that word: before it was read
    model, image = looking.model, looking.model.encode_image(tf.constant(features[:1]))
    state, weights = model.initial_state(1), []
    for word in [START, *looking.vocabulary.encode(["a", "red"])[1:-1]]:
        outputs, state = model.read_words(tf.constant([[word]]), state)
        weights.append(np.mean(model.merge(outputs, image)[1], axis=(0, 1, 2)).reshape(2, 2))
    np.testing.assert_allclose(maps[0], weights, atol=1e-5)


# --- a whole split -----------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("without_meteor")


def test_a_split_is_scored_beside_its_baselines(captioner, tiny_prepared):
    result = evaluate(captioner, tiny_prepared, "dev", 1, 0.7)
    prepared = Prepared(tiny_prepared)
    assert result.images == prepared.images("dev")
    features = result.cache.read(result.cache.rows(result.images), (8,))
    expected = captioner.caption_features(features, 1)
    assert result.captions == [caption.text for caption in expected]
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"} <= set(result.scores)
    assert len(result.statistics) == 4
    assert 100 * result.statistics[:, -1].mean() == pytest.approx(result.scores["CIDEr-D"])
    assert set(result.rows) == {
        "constant caption",
        "images shuffled",
        "nearest training image",
        "one person against the others",
    }
    assert all({"BLEU-4", "CIDEr-D"} <= set(scores) for scores in result.rows.values())
    written = {caption for image in prepared.references("train") for caption in image}
    assert result.floor in {" ".join(scoring_tokens(caption)) for caption in written}


def test_a_split_of_one_image_is_scored(captioner, make_prepared, tiny_captions, tmp_path):
    one = dict(list(tiny_captions["dev"].items())[:1])
    encoder = captioner.checkpoint.encoder | {"name": "tiny.keras"}
    make_prepared(tmp_path, {**tiny_captions, "dev": one}, encoder=encoder)
    result = evaluate(captioner, tmp_path, "dev", 1, 0.7)
    assert result.images == ["dev0.jpg"]
    assert {"BLEU-4", "CIDEr-D"} <= set(result.scores)
    assert "images shuffled" not in result.rows
    assert "constant caption" in result.rows


def test_pictures_that_could_not_be_read_are_left_out(captioner, tiny_prepared, tmp_path):
    folder = shutil.copytree(tiny_prepared, tmp_path / "prepared")
    index = next(folder.glob("features/*/index.json"))
    content = json.loads(index.read_text())
    content["failed"] = {"dev1.jpg": "damaged picture", "train0.jpg": "damaged picture"}
    index.write_text(json.dumps(content))
    result = evaluate(captioner, folder, "dev", 1, 0.7)
    assert result.images == ["dev0.jpg", "dev2.jpg", "dev3.jpg"]
    assert len(result.captions) == len(result.references) == len(result.statistics) == 3
    content["failed"] = {f"dev{number}.jpg": "damaged picture" for number in range(4)}
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no image of the dev split"):
        evaluate(captioner, folder, "dev", 1, 0.7)


def test_an_encoder_file_may_have_moved(captioner, tiny_prepared, tmp_path):
    folder = shutil.copytree(tiny_prepared, tmp_path / "prepared")
    index = next(folder.glob("features/*/index.json"))
    content = json.loads(index.read_text())
    content["encoder"]["name"] = "/elsewhere/tiny.keras"
    index.write_text(json.dumps(content))
    assert evaluate(captioner, folder, "dev", 1, 0.7).captions


def test_images_that_were_trained_on_are_left_out(
    captioner, make_prepared, tiny_captions, tmp_path, capfd, monkeypatch
):
    """The same pictures in other splits, as after drawing the splits with another seed."""
    encoder = captioner.checkpoint.encoder | {"name": "tiny.keras"}
    everything = {**tiny_captions["train"], **tiny_captions["dev"]}
    images = list(everything)  # eight were trained on, four not
    for dev, told, kept in (
        (images[6:], "trained on: 2 of the 6 dev images", images[8:]),
        (images[8:], "", images[8:]),
    ):
        splits = {"dev": {name: everything[name] for name in dev}}
        splits["train"] = {name: everything[name] for name in images if name not in dev}
        folder = make_prepared(tmp_path / str(len(dev)), splits, encoder=encoder)
        number_pictures(folder, images)
        assert evaluate(captioner, folder, "dev", 1, 0.7).images == kept
        assert told in capfd.readouterr().err
    evaluate(captioner, folder, "train", 1, 0.7)
    assert "8 of the 8 train images were trained on" in capfd.readouterr().err

    splits = {"dev": tiny_captions["train"], "train": tiny_captions["dev"]}
    folder = make_prepared(tmp_path / "all", splits, encoder=encoder)
    number_pictures(folder, images)
    with pytest.raises(InputError, match="8 of the 8 dev images were in the model's training"):
        evaluate(captioner, folder, "dev", 1, 0.7)


def number_pictures(folder, images):
    """Give each image of a cache the perceptual hash that it has in the tiny prepared folder."""
    index = next(folder.glob("features/*/index.json"))
    content = json.loads(index.read_text())
    content["hashes"] = [picture_hash(images.index(image)) for image in content["images"]]
    index.write_text(json.dumps(content))
