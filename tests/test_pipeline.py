"""The four steps on the sample data: a model learns to look at the image."""

import pytest

from captioning.captioner import Captioner
from captioning.datasets import read_dataset
from captioning.embeddings import embedding_matrix, train_fasttext
from captioning.encoders import BUNDLED, load_encoder
from captioning.evaluation import evaluate
from captioning.features import cache_folder, extract_features
from captioning.prepared import write_captions, write_embeddings
from captioning.vocabulary import Vocabulary, tokenize


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The sample's captions and the bundled encoder's pooled features."""
    folder = tmp_path_factory.mktemp("sample")
    dataset = read_dataset("data/sample")
    tokens = [tokenize(c) for image in dataset.splits["train"] for c in dataset.captions[image]]
    vocabulary = Vocabulary.from_captions(tokens, min_count=5)
    write_captions(folder, dataset, vocabulary, 20, {})
    vectors = train_fasttext(tokens, dimension=64, seed=0)
    write_embeddings(folder, embedding_matrix(vocabulary, vectors), "trained on the captions")
    names = [image for split in dataset.splits.values() for image in split]
    cache = cache_folder(folder, BUNDLED)
    extract_features(cache, dataset.image_folder, names, load_encoder(BUNDLED), keep_grid=False)
    return folder


@pytest.mark.usefixtures("without_meteor")
def test_a_trained_model_must_look_at_held_out_images_to_score(prepared, train_tiny, tmp_path):
    sizes = ("--epochs", 16, "--batch-size", 30, "--units", 256, "--dropout", 0.3)
    best = train_tiny(prepared, tmp_path, *sizes) / "best.safetensors"
    result = evaluate(Captioner.load(best), prepared, "test", 1, 0.7)
    right = result.scores["CIDEr-D"]
    assert right > 120
    assert result.rows["images shuffled"]["CIDEr-D"] < right / 2
    assert result.rows["constant caption"]["CIDEr-D"] < right / 2
