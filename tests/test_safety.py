"""What a stranger's file could do: planted code that must not run, sizes that must not be taken.

Checkpoints: test_checkpoint.py. Encoders: test_encoders.py. Archives and downloads:
test_download.py. Links and names that lead outside: test_dataset.py. The report: test_report.py.
"""

import io
import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.features import FeatureCache
from captioning.files import MAX_JSON_BYTES, InputError, read_json
from captioning.pictures import save_attention, save_captioned
from captioning.prepared import Prepared
from captioning.vocabulary import MAX_WORDS, SPECIALS, Vocabulary


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def array_with_code(trace):
    stream = io.BytesIO()
    np.save(stream, np.array([Planted(trace)], object), allow_pickle=True)
    return stream.getvalue()


def archive_with_code(trace, names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", array_with_code(trace))
    return stream.getvalue()


TOKENS = ("ids", "offsets", "images", "vocabulary")
PICKLES = {
    # file -> (its content, by the trace it leaves; who reads it)
    "embeddings.npy": (array_with_code, lambda folder: Prepared(folder).embeddings()),
    "tokens/train.npz": (
        lambda trace: archive_with_code(trace, TOKENS),
        lambda folder: Prepared(folder).tokens("train"),
    ),
    "features/synthetic/pooled.npy": (
        array_with_code,
        lambda folder: FeatureCache.open(folder / "features" / "synthetic"),
    ),
    "features/synthetic/grid.npy": (
        array_with_code,
        lambda folder: FeatureCache.open(folder / "features" / "synthetic"),
    ),
    "vocabulary.json": (
        lambda trace: pickle.dumps(Planted(trace)),
        lambda folder: Prepared(folder).vocabulary,
    ),
}


@pytest.fixture
def prepared(make_prepared, tiny_captions, tmp_path):
    return make_prepared(tmp_path / "prepared", tiny_captions)


def test_the_planted_code_does_leave_a_trace(tmp_path):
    trace = tmp_path / "trace"
    np.load(io.BytesIO(array_with_code(trace)), allow_pickle=True)
    assert trace.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_pickled_code_is_refused_and_does_not_run(prepared, tmp_path, name):
    make, read = PICKLES[name]
    read(prepared)
    trace = tmp_path / "trace"
    (prepared / name).write_bytes(make(trace))
    with pytest.raises(InputError, match=Path(name).name):
        read(prepared)
    assert not trace.exists()


def test_pickled_code_in_the_state_of_a_run_does_not_run(make_trainer, prepared, tmp_path):
    trace, run = tmp_path / "trace", tmp_path / "run"
    run.mkdir()
    (run / "resume.npz").write_bytes(archive_with_code(trace, ["facts", "variable-0"]))
    with pytest.raises(InputError, match=r"resume\.npz: damaged"):
        make_trainer(prepared, run).resume()
    assert not trace.exists()


def zeros(count):
    """A small archive of arrays, one of which unpacks to `count` bytes of zeros."""
    header, stream = io.BytesIO(), io.BytesIO()
    description = {"descr": "|i1", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("ids.npy", header.getvalue() + bytes(count))
    return stream.getvalue()


def test_arrays_that_unpack_to_too_much_are_refused_at_once(
    make_trainer, prepared, tmp_path, monkeypatch
):
    bomb = zeros(200_000_000)
    assert len(bomb) < 2_000_000
    monkeypatch.setattr("captioning.prepared.MAX_TOKEN_BYTES", 100_000_000)
    monkeypatch.setattr("captioning.training.MAX_FACTS_BYTES", 100_000_000)
    trainer = make_trainer(prepared, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "resume.npz").write_bytes(bomb)
    (prepared / "tokens" / "train.npz").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"train\.npz.*unpacks to 0\.2 GB"):
            Prepared(prepared).tokens("train")
        with pytest.raises(InputError, match=r"resume\.npz.*unpacks to 0\.2 GB"):
            trainer.resume()
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_a_vocabulary_of_a_billion_words_is_refused_before_it_is_read(prepared):
    path = prepared / "vocabulary.json"
    with path.open("wb") as file:  # holes: it takes no space
        file.truncate(8 * 10**9)
    with pytest.raises(InputError, match=r"vocabulary\.json: 8,000 MB, expected at most"):
        Prepared(prepared).vocabulary  # noqa: B018
    words = [*SPECIALS, *(f"w{n}" for n in range(MAX_WORDS))]
    value = {"tokenizer": "words", "words": words, "counts": [0] * len(words)}
    assert len(json.dumps(value)) < MAX_JSON_BYTES
    with pytest.raises(InputError, match=r"1,000,004 words; at most 1,000,000"):
        Vocabulary.from_json(value)


def test_a_device_is_not_read(tmp_path):
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"endless\.json: a folder or a device"):
        read_json(tmp_path / "endless.json", "nobody")


def test_dollar_signs_in_captions_are_no_formulas(tmp_path):
    picture = np.zeros((20, 20, 3), np.uint8)
    save_captioned(tmp_path / "a.png", [picture], [r"it costs $\frac $ and _x^ {"])
    save_attention(tmp_path / "b.png", picture, r"$\frac $", np.ones((2, 3, 3)))
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as drawn:
            drawn.load()
