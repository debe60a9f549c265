"""The scripts and commands as users meet them: arguments in; stdout, stderr and a status out."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import captioning
from captioning.__main__ import COMMANDS
from captioning.captioner import Captioner
from captioning.checkpoint import Checkpoint
from captioning.config import Config
from captioning.encoders import load_encoder
from captioning.vocabulary import END

ROOT = Path(__file__).resolve().parent.parent
EPOCH = re.compile(
    r"epoch +(\d+)/(\d+)  (train loss|reward) +[\d.]+  dev loss [\d.]+  perplexity +[\d.]+  "
    r"BLEU-4 +[\d.]+  CIDEr-D +[\d.]+[* ]  [\d.]+ min, \d+ min left  .*"
)
COMMAND = "captioning/__main__.py"  # python -m captioning
SIZES = ["--batch-size", "12", "--units", "16", "--heads", "2", "--dropout", "0.2"]


def rejected(outcome, *said):
    """Check that nothing was printed but one error, in one or two lines, that says so."""
    status, out, err = outcome
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") <= 2
    for text in said:
        assert text in err


# --- usage -------------------------------------------------------------------------------------


WRONG = {
    "train.py": (
        *("--epochs 0", "--epochs x", "--epochs 1.5", "--batch-size 0", "--units 99999999999"),
        *("--heads 3 --attention grid", "--dropout 1", "--dropout nan", "--max-words -1"),
        *("--learning-rate 0", "--learning-rate inf", "--label-smoothing -0.1", "--seed -1"),
        *("--self-critical-epochs -1", "--rnn transformer", "--attention all", "--unknown"),
    ),
    "test.py": (
        *("", "--image", "--image a.jpg --split dev", "--image a.jpg --beam-width 0"),
        *("--image a.jpg --beam-width 1000000000", "--image a.jpg --beam-width 3.0"),
        *("--image a.jpg --length-penalty nan", "--image a.jpg --length-penalty -1"),
        *("--image a.jpg --report page.html", "--image a.jpg --attention"),
        *("--split dev --save out.png", "--split dev --compare best.safetensors"),
    ),
    COMMAND: ("", "nothing", "caption", "caption a.jpg --beam-width 0", "caption --split dev a"),
}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, text) for name, texts in WRONG.items() for text in texts]
)
def test_wrong_usage_is_one_line(script, name, arguments):
    rejected(script(name, *arguments.split()), "; see ", "--help\n")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.txt", "folder/"])
def test_the_suffix_of_a_picture_is_its_format(script, photographs, name):
    rejected(script("test.py", "--image", photographs[0], "--save", name), ".png")


@pytest.mark.parametrize("name", ["best.safetensors", "photo.jpg", "report"])
def test_a_report_is_a_page_and_overwrites_no_other_file(script, name):
    Path(name).write_text("mine")
    rejected(script("test.py", "--split", "dev", "--report", name), ".html")
    assert Path(name).read_text() == "mine"


@pytest.mark.parametrize("named", ["holiday/photo.png", "holiday", "link.png"])
def test_a_photograph_is_not_overwritten_by_its_caption(script, photographs, named):
    Path("holiday").mkdir()
    photograph = Path("holiday/photo.png")
    photograph.write_bytes(photographs[0].read_bytes())
    Path("link.png").symlink_to(photograph)
    rejected(script("test.py", "--image", named, "--save", photograph), "is one of the photographs")
    assert photograph.read_bytes() == photographs[0].read_bytes()


@pytest.mark.parametrize("name", ["file/out.png", "folder.png", f"{'x' * 300}.png"])
def test_a_result_that_cannot_be_written_is_reported_before_the_work(script, photographs, name):
    Path("file").write_text("mine")
    Path("folder.png").mkdir()
    before = sorted(Path().rglob("*"))
    rejected(script("test.py", "--image", photographs[0], "--save", name), name)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", ["train.py", "test.py", f"{COMMAND} caption"])
def test_help_is_quick_and_explains_every_option(name):
    name, *command = name.split()
    code = (
        f"import runpy, sys; sys.argv = {[name, *command, '--help']!r}\n"
        f"try: runpy.run_path({str(ROOT / name)!r}, run_name='__main__')\n"
        "except SystemExit: print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("False\n")
    assert done.stderr == ""
    options = set(re.findall(r"^  (--[a-z0-9-]+)", done.stdout, re.MULTILINE))
    source = (ROOT / ("captioning/extras/serve/caption.py" if command else name)).read_text()
    wanted = set(re.findall(r'add\("(--[a-z0-9-]+)"', source))
    if name == "train.py":
        wanted |= {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)}
    assert wanted <= options
    assert "default: False" not in done.stdout
    assert "default: None" not in done.stdout


# --- captions ----------------------------------------------------------------------------------


def json_lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_process_of_its_own_prints_captions_and_nothing_else(
    process, tiny_checkpoint, photographs, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # the project uses TensorFlow whatever is set
    order = [photographs[2], photographs[0]]
    running = process("test.py", "--image", *order, "--model", tiny_checkpoint, "--json")
    out, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (0, "")  # nor messages of TensorFlow
    lines = json_lines(out)
    assert [line["image"] for line in lines] == [str(path) for path in order]
    expected = Captioner.load(tiny_checkpoint).describe(order, beam_width=1)
    assert [line["caption"] for line in lines] == [caption.text for caption in expected]
    for line, caption in zip(lines, expected, strict=True):
        assert line["log_probability"] == pytest.approx(caption.log_probability, abs=1e-4)
        assert line["confidence"] == pytest.approx(caption.confidence, abs=1e-4)


def test_a_photograph_is_captioned_without_what_only_preparing_needs():
    code = "import sys, captioning.captioner; print([*sys.modules])"
    names = ast.literal_eval(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    )
    assert "tensorflow" in names
    assert {"nltk", "gensim", "scipy.stats", "tensorboard"}.isdisjoint(names)


@pytest.mark.parametrize(
    ("options", "width"),
    [("test.py --image", 1), (f"{COMMAND} caption", 5), ("test.py --beam-width 3 --image", 3)],
)
def test_captions_as_text(script, tiny_checkpoint, photographs, options, width):
    again = [*photographs, photographs[0]]
    status, out, err = script(*options.split(), *again, "--model", tiny_checkpoint)
    assert (status, err) == (0, "")
    expected = Captioner.load(tiny_checkpoint).caption(again, beam_width=width)
    assert out.splitlines() == [
        f"{path}: {text}" for path, text in zip(again, expected, strict=True)
    ]


def test_test_py_and_the_command_print_the_same(script, tiny_checkpoint, photographs, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no picture")
    for images, status in (([*photographs, broken], 1), ([broken], 2)):
        for options in ([], ["--json"], ["--beam-width", "2", "--length-penalty", "0"]):
            options = ["--beam-width", "5", *options, "--model", tiny_checkpoint]
            by_script = script("test.py", "--image", *images, *options)
            assert by_script[0] == status
            assert script(COMMAND, "caption", *images, *options) == by_script


def test_the_commands_are_listed_with_the_version(script):
    status, out, err = script(COMMAND, "--help")
    assert (status, err) == (0, "")
    assert all(re.search(rf"^    {name} +\w", out, re.MULTILINE) for name in ("train", *COMMANDS))
    assert script(COMMAND, "--version") == (0, f"{captioning.__version__}\n", "")
    _, out, _ = script(COMMAND, "train", "--help")
    assert "--epochs" in out


def test_a_folder_is_captioned_in_order_and_bad_pictures_are_named(
    script, tiny_checkpoint, photographs, tmp_path
):
    folder, text, gone = tmp_path / "more", tmp_path / "text.png", tmp_path / "gone.jpg"
    folder.mkdir()
    for number in range(17):  # more than are encoded at once
        Image.new("RGB", (8, 8), (number * 15, 0, 0)).save(folder / f"{number:02}.PNG")
    for path in (folder / "notes.txt", text):
        path.write_text("no picture")
    images = [gone, photographs[1], folder, text, photographs[1]]
    command = ["test.py", "--model", tiny_checkpoint, "--json", "--image"]
    status, out, err = script(*command, *images)
    assert status == 1
    named = [Path(line["image"]).name for line in json_lines(out)]
    assert named == ["b.jpg", *(f"{number:02}.PNG" for number in range(17)), "b.jpg"]
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["error", str(gone)],
        ["error", str(text)],
    ]


@pytest.mark.parametrize("name", [b"caf\xe9.png", "two\nlines é.png".encode()])
def test_any_file_name_is_shown_in_one_line(script, tiny_checkpoint, photographs, name):
    name = os.fsdecode(name)
    try:
        Path(name).write_bytes(photographs[0].read_bytes())
    except OSError:
        pytest.skip("the file system wants UTF-8")
    arguments = ["test.py", "--image", name, "--model", tiny_checkpoint]
    status, out, err = script(*arguments, "--json")
    assert (status, err) == (0, "")
    assert json_lines(out)[0]["image"] == name
    status, out, _ = script(*arguments)
    assert status == 0
    assert re.fullmatch(r"(caf.*|two\\nlines é)\.png: .+\n", out)


def test_pictures_are_saved_with_their_captions(script, tiny_checkpoint, photographs, tmp_path):
    twice = [*photographs, photographs[0]]
    for paths, name in ((photographs[:1], "one.png"), (twice, "deep/four.jpg")):
        out = tmp_path / name
        arguments = ["--image", *paths, "--model", tiny_checkpoint, "--save", out]
        status, _, err = script("test.py", *arguments)
        assert (status, err) == (0, f"wrote {out}\n")
        with Image.open(out) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture).std() > 10


def test_attention_is_drawn(script, tiny_checkpoint, tiny_grid_checkpoint, photographs, tmp_path):
    out = tmp_path / "attention.png"
    arguments = ["test.py", "--image", photographs[0], "--save", out, "--attention", "--model"]
    status, text, err = script(*arguments, tiny_grid_checkpoint)
    assert (status, err) == (0, f"wrote {out}\n")
    assert len(text.splitlines()) == 1
    with Image.open(out) as picture:
        assert np.asarray(picture).std() > 10
    out.unlink()
    rejected(script(*arguments, tiny_checkpoint), "no attention")
    assert not out.exists()
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", ".hidden.jpg"):
        (folder / name).write_bytes(Path(photographs[0]).read_bytes())
    arguments[2] = folder
    rejected(script(*arguments, tiny_grid_checkpoint), "2 were given")


def test_the_encoder_of_a_model_is_given_by_its_file(
    script, photographs, make_prepared, train_tiny, tiny_captions, tmp_path
):
    import keras

    weights = tmp_path / "vgg16.weights.h5"  # few layers: loaded three times
    keras.applications.VGG16(include_top=False, weights=None).save_weights(weights)
    encoder = load_encoder("vgg16", weights, image_size=32)
    prepared = make_prepared(tmp_path / "prepared", tiny_captions, encoder=encoder.to_json())
    model = train_tiny(prepared, tmp_path / "run", "--epochs", 1) / "best.safetensors"
    arguments = ["test.py", "--image", photographs[0], "--model", model]
    status, out, _ = script(*arguments, "--encoder", weights)
    assert status == 0
    assert out.startswith(f"{photographs[0]}: ")
    rejected(script(*arguments, "--encoder", "efficientnet_lite2"), "made with vgg16")
    rejected(script(*arguments, "--encoder", tmp_path / "moved.keras"), "give it with --encoder")


def test_an_empty_caption_is_reported(script, tiny_checkpoint, photographs, tmp_path):
    checkpoint = Checkpoint.load(tiny_checkpoint)
    bias = next(w for w in checkpoint.model.weights if w.shape == (len(checkpoint.vocabulary),))
    bias.assign(np.eye(len(checkpoint.vocabulary))[END] * 1e6)
    checkpoint.save(tmp_path / "mute.safetensors")
    arguments = ["test.py", "--image", photographs[0], "--model", tmp_path / "mute.safetensors"]
    status, out, err = script(*arguments)
    assert (status, out) == (0, f"{photographs[0]}: \n")
    assert "the caption is empty" in err


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_meteor")
def test_a_split_is_scored(script, tiny_checkpoint, tiny_prepared, tmp_path):
    report = tmp_path / "page.html"
    arguments = ["test.py", "--split", "dev", "--data", tiny_prepared, "--model", tiny_checkpoint]
    status, out, _ = script(*arguments, "--json", "--report", report)
    assert status == 0
    (scores,) = json_lines(out)
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"} <= set(scores)
    assert all(0 <= scores[name] <= 1000 for name in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"))
    assert "dev0.jpg" in report.read_text()
    status, table, _ = script(*arguments)
    assert status == 0
    assert f"{scores['CIDEr-D']:.1f}" in table
    assert "constant caption" in table
    grid = ["--report", report, "--compare", tiny_checkpoint]
    assert script(*arguments, *grid)[0] == 0
    assert "dev0.jpg" in report.read_text()


def test_what_a_split_needs_is_reported(
    script, tiny_checkpoint, tiny_prepared, make_prepared, tiny_captions, tmp_path
):
    arguments = ["test.py", "--model", tiny_checkpoint, "--split"]
    rejected(script(*arguments, "dev", "--data", tmp_path / "nowhere"), "nowhere", "--data")
    rejected(script(*arguments, "validation", "--data", tiny_prepared), "train, dev")
    encoder = Checkpoint.load(tiny_checkpoint).encoder
    other = {**encoder, "fingerprint": "f" * 16}
    make_prepared(tmp_path / "other", tiny_captions, encoder=other)
    outcome = script(*arguments, "dev", "--data", tmp_path / "other")
    rejected(outcome, other["fingerprint"], encoder["fingerprint"])
    make_prepared(tmp_path / "third", tiny_captions, encoder={**encoder, "name": "third"})
    rejected(script(*arguments, "dev", "--data", tmp_path / "third"), "image_extraction.ipynb")


# --- training ----------------------------------------------------------------------------------


def train(prepared, output, epochs=4):
    return ["train.py", "--data", prepared, "--output", output, "--epochs", str(epochs), *SIZES]


def test_a_run_and_its_files(process, script, tiny_prepared, tmp_path):
    """Kills and resumption: test_killed.py."""
    running = process(*train(tiny_prepared, tmp_path / "run"))
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0
    assert not re.search(r"^(WARNING|[IWE]\d{4})|oneDNN|cuda", err, re.MULTILINE)
    lines = [EPOCH.fullmatch(line) for line in out.splitlines()]
    assert [line.group(1, 2) for line in lines] == [(str(n), "4") for n in range(1, 5)]
    best = tmp_path / "run" / "best.safetensors"
    assert err.splitlines()[-1].startswith("next: python test.py --split dev")
    assert str(best) in err.splitlines()[-1]
    assert "only 2 steps per epoch; try a smaller --batch-size" in err
    epochs = {f"epoch-{number:03}.safetensors" for number in range(1, 5)}
    files = {path.name for path in best.parent.iterdir() if not path.name.startswith(".")}
    others = {"best.safetensors", "curves.png", "history.csv", "resume.safetensors"}
    assert files == epochs | others
    with Image.open(best.with_name("curves.png")) as picture:
        assert min(picture.size) > 200

    before = {path.name: path.read_bytes() for path in best.parent.iterdir()}
    status, out, err = script(*train(tiny_prepared, best.parent))
    assert (status, out) == (2, "")
    assert "--resume" in err.splitlines()[-1]
    status, out, err = script(*train(tiny_prepared, best.parent), "--resume", "--rnn", "lstm")
    assert (status, out) == (2, "")
    assert "rnn = gru" in err
    status, _, err = script(*train(tiny_prepared, best.parent), "--resume")
    assert status == 0
    assert {path.name: path.read_bytes() for path in best.parent.iterdir()} == before


def test_attention_self_critical_epochs_and_tensorboard(script, tiny_prepared, tmp_path):
    status, out, _ = script(
        *train(tiny_prepared, tmp_path / "run", epochs=1),
        *("--attention", "grid", "--rnn", "lstm", "--bfloat16", "--self-critical-epochs", "1"),
        *("--freeze-embeddings", "--tensorboard", tmp_path / "logs"),
    )
    assert status == 0
    kinds = [EPOCH.fullmatch(line).group(3) for line in out.splitlines()]
    assert kinds == ["train loss", "reward"]
    loaded = Checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert (loaded.model.config.rnn, loaded.model.config.attention) == ("lstm", "grid")
    assert loaded.model.compute_dtype == "bfloat16"
    assert list((tmp_path / "logs").glob("events.*"))
    assert (tmp_path / "logs" / "projector_config.pbtxt").exists()


def test_what_training_needs_is_reported(
    script, make_prepared, tiny_captions, tiny_prepared, tmp_path
):
    """Damaged folders: test_bad_input.py."""
    rejected(script("train.py"), "caption_extraction.ipynb")
    pooled = make_prepared(tmp_path / "pooled", tiny_captions, keep_grid=False)
    status, out, err = script(*train(pooled, tmp_path / "run"), "--attention", "grid")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert "keep_grid = True" in err
    other = script(*train(tiny_prepared, tmp_path / "run"), "--encoder", "resnet50")
    rejected(other, "image_extraction.ipynb")
    (tmp_path / "file").touch()
    rejected(script(*train(tiny_prepared, tmp_path / "file" / "run")), "cannot be written")
    assert not (tmp_path / "run" / "resume.safetensors").exists()
