"""The two notebooks: run by papermill, as `make demo` does, and as they are committed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from captioning.features import FeatureCache, cache_folder
from captioning.prepared import Prepared

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
NOTEBOOKS = ("caption_extraction.ipynb", "image_extraction.ipynb")
MAX_BYTES = 1_200_000  # of a committed notebook, pictures included
SPLITS = {"train": 20, "dev": 4, "test": 4}


def start_papermill(notebook, output, **parameters):
    """Start papermill in a process group of its own, without network and cached weights."""
    command = [sys.executable, "-m", "papermill", notebook, output, "--log-level", "ERROR"]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    environment = os.environ | {
        "TQDM_DISABLE": "1",
        "MPLBACKEND": "TkAgg",  # the notebooks draw inline whatever this says
        "KERAS_HOME": str(Path(output).parent / "keras"),  # no cached weights
        "https_proxy": "http://127.0.0.1:9",  # refuses connections
        "JUPYTER_PATH": "",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_papermill(notebook, output, **parameters):
    """Run papermill to its end; returns its status and the last paragraph of stderr."""
    running = start_papermill(notebook, output, **parameters)
    _, err = running.communicate(timeout=300)
    return running.returncode, err.strip().split("\n\n")[-1]


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


# ---- the two notebooks, run ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The first few images of the sample; one of them is damaged."""
    folder = tmp_path_factory.mktemp("small")
    images, texts = folder / "Flicker8k_Dataset", folder / "Flickr8k_text"
    images.mkdir()
    texts.mkdir()
    shutil.copy(SAMPLE / "Flickr8k_text" / "Flickr8k.token.txt", texts)
    for split, count in SPLITS.items():
        file = f"Flickr_8k.{split}Images.txt"
        names = (SAMPLE / "Flickr8k_text" / file).read_text().split()[:count]
        (texts / file).write_text("\n".join(names))
        for name in names:
            shutil.copy(SAMPLE / "Flicker8k_Dataset" / name, images)
    (images / names[-1]).write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def prepared(dataset, tmp_path_factory):
    """What both notebooks write, and what the second prints."""
    folder = tmp_path_factory.mktemp("run") / "prepared"
    caption_settings = {"minimum_count": 2, "embedding_dimension": 8, "embedding_epochs": 2}
    image_settings = {"mirrored": True, "image_size": 96, "batch_size": 8}  # encoder: the fallback
    output = folder.with_name("executed.ipynb")
    for notebook, settings in zip(NOTEBOOKS, (caption_settings, image_settings), strict=True):
        settings |= {"dataset": dataset, "prepared": folder}
        status, message = run_papermill(notebook, output, **settings)
        assert status == 0, message
    return folder, output.read_text()


def test_caption_extraction_writes_a_prepared_folder(prepared):
    folder, _ = prepared
    opened = Prepared(folder)
    assert opened.splits == SPLITS
    assert opened.embeddings().shape == (len(opened.vocabulary), 8)
    assert len(opened.tokens("train")) == 5 * SPLITS["train"]
    assert opened.vocabulary.counts[4:] == sorted(opened.vocabulary.counts[4:], reverse=True)
    assert min(opened.vocabulary.counts[4:]) >= 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_image_extraction_writes_features(prepared, mirrored):
    folder, printed = prepared
    cache = FeatureCache.open(cache_folder(folder, "efficientnet_lite2", mirrored))
    opened = Prepared(folder)
    images = [image for split in SPLITS for image in opened.images(split)]
    assert cache.mirrored is mirrored
    assert cache.encoder["image_size"] == 96
    assert list(cache.failed) == images[-1:]
    assert f"{images[-1]}: " in printed
    assert cache.rows(images).tolist() == [*range(len(images) - 1), -1]
    assert cache.grid.shape[0] == len(images)
    assert np.linalg.norm(cache.pooled[:-1], axis=1).min() > 0


def test_image_extraction_names_the_fallback_and_captions_a_photograph(prepared):
    _, printed = prepared
    assert "resnet50: ImageNet weights neither cached nor downloadable; using effic" in printed
    assert "images/dog-on-grass.jpg: a " in printed


def test_without_a_fallback_image_extraction_ends_in_the_error(dataset, tmp_path):
    settings = {"dataset": dataset, "prepared": tmp_path / "prepared", "fallback": ""}
    status, message = run_papermill(NOTEBOOKS[1], tmp_path / "output.ipynb", **settings)
    assert status == 1
    assert message.startswith("InputError: resnet50: ")
    assert not (tmp_path / "prepared").exists()


# ---- the two notebooks as they are committed -----------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_notebooks_are_executed_in_order_and_bare(name):
    notebook = nbformat.read(ROOT / name, as_version=4)
    nbformat.validate(notebook)
    assert (ROOT / name).stat().st_size < MAX_BYTES
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    cells = code_cells(ROOT / name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    tags = [cell.metadata.get("tags") for cell in cells]
    assert tags == [["parameters"], *[None] * len(cells[1:])]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_notebooks_show_only_results(name):
    outputs = [output for cell in code_cells(ROOT / name) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert {*kinds} <= {"image/png", "image/jpeg", "text/plain"}  # no widgets of progress bars
    images = [output.metadata for output in outputs if "data" in output]
    assert len(images) >= 5
    assert all(details.alt for image in images for details in image.values())


# ---- papermill -----------------------------------------------------------------------------------


def small_notebook(folder, cell):
    """Write a notebook with the parameter `name` and one cell; returns its path."""
    cells = [
        nbformat.v4.new_code_cell('name = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(cell),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path = folder / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_keeps_a_foreign_kernel_out():
    foreign = {"JUPYTER_PATH": "/somewhere", "PYTHONPATH": "/elsewhere"}
    command = ["make", "-s", "--eval=show: ; @env", "show"]
    shown = subprocess.run(command, cwd=ROOT, env=os.environ | foreign, capture_output=True)
    assert shown.returncode == 0, shown.stderr
    assert not [name for name in foreign if name.encode() in shown.stdout]


def test_captions_without_a_word_end_in_one_line(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "captions.csv").write_text("".join(f"{number}.png,!!!\n" for number in range(3)))
    settings = {"dataset": tmp_path, "prepared": tmp_path / "prepared"}
    status, message = run_papermill(NOTEBOOKS[0], tmp_path / "output.ipynb", **settings)
    assert (status, message.partition(": its ")[0]) == (1, f"InputError: {tmp_path}")
    assert message.endswith("training captions hold no word; is the tokenizer right?")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_kernel_without_the_packages_ends_in_one_line(name, tmp_path):
    cell = code_cells(ROOT / name)[1].source.replace('"numpy"', '"no-such-package"')
    assert run_papermill(small_notebook(tmp_path, cell), tmp_path / "output.ipynb") == (
        1,
        "SystemExit: no no-such-package in this kernel; pip install -r requirements.txt",
    )


def test_an_interrupted_run_leaves_no_kernel(tmp_path):
    code = (
        "import os, pathlib, time\npathlib.Path(name).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    written = tmp_path / "kernel"
    notebook = small_notebook(tmp_path, code)
    running = start_papermill(notebook, tmp_path / "output.ipynb", name=written)
    while not (written.exists() and written.read_text()):
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert err.endswith("Aborted!\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)
