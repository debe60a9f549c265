"""Captions without TensorFlow: `.tflite` files, against the checkpoints they were exported from."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from captioning import load_captioner
from captioning.__main__ import main
from captioning.captioner import Captioner
from captioning.errors import InputError
from captioning.extras.serve import web
from captioning.extras.serve.light import LightCaptioner, read_information, write_light
from captioning.images import load_image

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"tensorflow", "keras", "captioning.features", "captioning.captioner", "gensim"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
MODELS = ("pooled", "grid", "lstm")
LSTM = ("--rnn", "lstm", "--min-words", 4, "--no-repeat-ngram", 2)


def export(checkpoint, output, *options):
    main(["export", *map(str, (checkpoint, output, *options))])
    return output


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_checkpoint, tiny_grid_checkpoint, tiny_prepared, train_tiny):
    output = tmp_path_factory.mktemp("lstm")
    train_tiny(tiny_prepared, output, *LSTM, "--attention", "grid", "--epochs", 1)
    lstm = output / "best.safetensors"
    return {"pooled": tiny_checkpoint, "grid": tiny_grid_checkpoint, "lstm": lstm}


@pytest.fixture(scope="module")
def files(tmp_path_factory, checkpoints):
    """A `.tflite` file of each model, in float32."""
    folder = tmp_path_factory.mktemp("light")
    return {
        name: export(checkpoint, folder / f"{name}.tflite", "--precision", "float32")
        for name, checkpoint in checkpoints.items()
    }


@pytest.fixture(scope="module")
def file(files):
    return files["grid"]


def run(name, *arguments):
    """Status, stdout and stderr of a script in a process of its own."""
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, ROOT / name, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_captions_are_those_of_the_checkpoint(name, files, checkpoints, photographs):
    light, keras = LightCaptioner(files[name]), Captioner.load(checkpoints[name])
    assert (light.image_size, light.has_attention) == (keras.image_size, keras.has_attention)
    pixels = [load_image(path, light.image_size) for path in photographs]
    features = light.encode(pixels)
    np.testing.assert_allclose(features, keras.encode(pixels), atol=1e-5)
    rng = np.random.default_rng(0)
    features = np.concatenate([features, rng.normal(size=(12, *features.shape[1:]))])
    for search in ((1, 0.7), (3, 0.7), (3, 0.0), (3, 2.0), (1, 0.7, 3), (2, 0.7, 4)):
        ours = light.caption_features(features, *search)
        for one, other in zip(ours, keras.caption_features(features, *search), strict=True):
            pairs = zip((one, *one.alternatives), (other, *other.alternatives), strict=True)
            for found, expected in pairs:
                assert found.words == expected.words
                np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-4)
    texts = [caption.text for caption in ours]
    if light.has_attention:
        expected = keras.attention(features, texts)
        for found, maps in zip(light.attention(features, texts), expected, strict=True):
            np.testing.assert_allclose(found, maps, atol=1e-5)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_smaller_weights_change_probabilities_little(
    precision, checkpoints, tmp_path, file, monkeypatch
):
    monkeypatch.setattr("captioning.extras.serve.export.LARGE", 1000)  # of these models
    small = export(checkpoints["grid"], tmp_path / "small.tflite", "--precision", precision)
    light, exact = LightCaptioner(small), LightCaptioner(file)
    assert light.information["precision"] == precision
    assert small.stat().st_size < file.stat().st_size - 5000
    features = np.random.default_rng(0).normal(size=(4, 4, 8))
    for one, other in zip(*(c.caption_features(features, 1) for c in (light, exact)), strict=True):
        assert abs(one.probabilities[0] - other.probabilities[0]) < 0.05


def test_the_command_writes_the_same_file_again(file, checkpoints, tmp_path):
    again = export(checkpoints["grid"], tmp_path / "again.tflite", "--precision", "float32")
    assert read_information(again)["vocabulary"] == read_information(file)["vocabulary"]
    for output, reason in ((tmp_path / "a.onnx", r"ending in \.tflite"), (tmp_path, "ending")):
        with pytest.raises(InputError, match=reason):
            export(checkpoints["grid"], output)


@pytest.mark.parametrize("command", [("test.py", "--image"), ("captioning/__main__.py", "caption")])
def test_the_commands_never_import_tensorflow(command, file, photographs, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    options = ("--model", file, "--beam-width", 3, "--json")
    status, out, err = run(*command, *photographs, bad, *options)
    assert (status, err.splitlines()[1:]) == (1, ["[]"])
    assert err.startswith(f"error: {bad}: ")
    lines = [json.loads(line) for line in out.splitlines()]
    expected = LightCaptioner(file).caption(photographs, beam_width=3)
    assert [line["caption"] for line in lines] == expected
    assert {line["model"] for line in lines} == {str(file)}


def test_pictures_are_drawn_without_tensorflow(file, photographs, tmp_path):
    drawn = tmp_path / "drawn.png"
    options = ("--model", file, "--save", drawn, "--attention")
    status, _, err = run("test.py", "--image", photographs[0], *options)
    assert (status, err.splitlines()) == (0, [f"wrote {drawn}", "[]"])
    assert load_image(drawn, 8).std() > 0


def test_what_the_file_cannot_do_is_one_line(file, photographs, script, checkpoints):
    model = ("--model", file)
    status, _, err = script("test.py", "--split", "dev", *model)
    assert (status, err) == (2, f"error: {file}: --split needs a checkpoint of train.py\n")
    with pytest.raises(InputError, match="leave out --encoder"):
        load_captioner(file, encoder="encoder.keras")
    assert isinstance(load_captioner(checkpoints["grid"]), Captioner)


def test_damaged_and_foreign_files_are_one_line(file, tmp_path):
    data, path = file.read_bytes(), tmp_path / "bad.tflite"
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("other.json", "{}")
    bad = {"cut": data[:-1000], "half": data[: len(data) // 2], "empty": b"", "no zip": b"x" * 500}
    bad |= {"foreign": foreign.getvalue(), "flipped": data[:5000] + b"?" + data[5001:]}
    bad |= {"shifted": b"x" + data, "model alone": data[: data.rindex(b"PK\3\4")]}
    for content in bad.values():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.tflite: cannot be used .*export writes such"):
            LightCaptioner(path)
    write_light(path, b"not a model", read_information(file))
    with pytest.raises(InputError, match=r"bad\.tflite: cannot be used"):
        LightCaptioner(path)
    for missing, kind in ((tmp_path / "nothing.tflite", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InputError, match=kind):
            LightCaptioner(missing)


def test_the_web_page_shows_alternatives_and_attention(file, photographs):
    answer = web.describe(LightCaptioner(file), photographs[0])
    assert len(answer["alternatives"]) >= 1
    for caption in (answer, *answer["alternatives"]):
        maps = np.reshape(caption["maps"], (-1, 2, 2))  # an alternative may have no words
        assert len(maps) == len(caption["words"])


def test_a_package_that_is_missing_is_one_line():
    hidden = "import sys; sys.modules['keras'] = None; from captioning import __main__; "
    code = f"{hidden}sys.argv = ['caption', 'a.jpg', '--model', 'x']; __main__.installed()"
    for name, args in {"keras": ["-c", code], "TensorFlow": ["-S", "train.py"]}.items():
        done = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {name} is not installed in this environment; . .v")
