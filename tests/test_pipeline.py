"""The whole way on the sample data: a model learns to look at the image."""

import pytest

from captioning.batches import feature_shape, open_caches
from captioning.captioner import Captioner
from captioning.dataset import read_dataset
from captioning.embeddings import embedding_matrix, train_fasttext
from captioning.encoders import BUNDLED, load_encoder
from captioning.evaluation import evaluate
from captioning.features import cache_folder, extract_features
from captioning.model import ModelConfig
from captioning.prepared import Prepared, write_captions, write_embeddings
from captioning.training import Trainer, TrainingConfig
from captioning.vocabulary import Vocabulary, tokenize

SAMPLE = "data/sample"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The sample's captions and the bundled encoder's pooled features."""
    folder = tmp_path_factory.mktemp("sample")
    dataset = read_dataset(SAMPLE)
    tokens = [tokenize(c) for image in dataset.splits["train"] for c in dataset.captions[image]]
    vocabulary = Vocabulary.from_captions(tokens, min_count=5)
    write_captions(folder, dataset, vocabulary, {})
    vectors = train_fasttext(tokens, dimension=64, seed=0)
    write_embeddings(folder, embedding_matrix(vocabulary, vectors), "trained on the captions")
    names = [image for split in dataset.splits.values() for image in split]
    cache = cache_folder(folder, BUNDLED)
    extract_features(cache, dataset.image_folder, names, load_encoder(BUNDLED), keep_grid=False)
    return Prepared(folder)


def test_a_trained_model_must_look_at_held_out_images_to_score(prepared, tmp_path):
    caches = open_caches(prepared.folder)
    embeddings = prepared.embeddings()
    model = ModelConfig(
        vocabulary_size=len(prepared.vocabulary),
        feature_shape=feature_shape(caches[0], "none"),
        embedding_size=embeddings.shape[1],
        units=256,
    )
    config = TrainingConfig(epochs=16, batch_size=30)
    trainer = Trainer(prepared, caches, model, config, tmp_path, embeddings=embeddings)
    for _ in trainer.epochs():
        pass
    captioner = Captioner.load(tmp_path / "best.keras")
    result = evaluate(captioner, prepared, "test", caches[0])
    right = result.scores["CIDEr-D"]
    assert right > 120
    assert result.rows["images shuffled"]["CIDEr-D"] < right / 2
    assert result.rows["one caption for all"]["CIDEr-D"] < right / 2
