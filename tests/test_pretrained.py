"""The captioner that ships with the project, on photographs that anybody may use."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from captioning.captioner import PRETRAINED, Captioner
from captioning.encoders import load_encoder

ROOT = Path(__file__).resolve().parent.parent
PERSON = {"man", "woman", "person", "girl", "boy"}
ANIMAL = {"dog", "animal", "cat"}


@pytest.fixture(scope="module")
def captioner():
    return Captioner.load()


@pytest.fixture(scope="module")
def captions(captioner):
    """Photograph -> the words of its caption, beam 5."""
    photographs = sorted((ROOT / "images").glob("*.jpg"))
    found = captioner.caption(photographs, beam_width=5)
    return {path.stem: text.split() for path, text in zip(photographs, found, strict=True)}


def test_the_captioner_is_small_and_goes_with_the_bundled_encoder(captioner):
    assert PRETRAINED.stat().st_size <= 40e6
    assert captioner.checkpoint.encoder == load_encoder("efficientnet_lite2").to_json()


@pytest.mark.parametrize(
    ("photograph", "expected"),
    [
        ("astronaut", PERSON),
        ("astronaut", {"uniform", "suit", "costume"}),
        ("photographer", PERSON),
        ("photographer", {"camera", "tripod"}),
        ("raccoon", ANIMAL),
    ],
)
def test_what_must_be_said_is_said(captions, photograph, expected):
    assert expected & set(captions[photograph]), " ".join(captions[photograph])


def test_each_photograph_gets_a_sentence_of_its_own(captions):
    sentences = [" ".join(words) for words in captions.values()]
    assert len(set(sentences)) == len(sentences) > 4
    assert all(3 <= len(words) <= 20 for words in captions.values())


def test_the_card_has_the_scores_and_the_checksum_of_the_files_beside_it():
    card = (PRETRAINED.parent / "README.md").read_text()
    assert hashlib.sha256(PRETRAINED.read_bytes()).hexdigest() in card
    scores = json.loads((PRETRAINED.parent / "dev_scores.json").read_text())
    assert scores
    for run in scores:
        row = re.search(rf"^\| {re.escape(run['decoding'])} \|(.*)\|$", card, re.MULTILINE)
        cells = [float(cell) for cell in row[1].split("|")]
        wanted = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
        assert cells == [round(run[name], 1) for name in wanted]


def test_training_json_is_the_header_of_the_checkpoint(captioner):
    training = json.loads((PRETRAINED.parent / "training.json").read_text())
    checkpoint = captioner.checkpoint
    assert training["config"].items() <= dataclasses.asdict(checkpoint.model.config).items()
    assert training["encoder"] == checkpoint.encoder
    assert all(training[name] == checkpoint.facts[name] for name in ("epoch", "history"))
