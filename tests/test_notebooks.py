import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from captioning.features import FeatureCache, cache_folder
from captioning.files import InputError
from captioning.plots import principal_components
from captioning.prepared import Prepared

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
NOTEBOOKS = ("caption_extraction.ipynb", "image_extraction.ipynb")
MAX_BYTES = 1_200_000  # of a committed notebook, pictures included
SPLITS = {"train": 20, "dev": 4, "test": 4}


def run_notebook(notebook, *arguments, **parameters):
    """Run tools/run_notebook.py as a user does, from a folder of no importance."""
    settings = [f"--set={name}={value}" for name, value in parameters.items()]
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "run_notebook.py", notebook, *settings, *arguments],
        cwd=Path(notebook).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


# ---- the two notebooks, run anew -----------------------------------------------------------------


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
    """What both notebooks make of it, and what they print."""
    folder = tmp_path_factory.mktemp("run") / "prepared"
    caption_settings = {"minimum_count": 2, "embedding_dimension": 8, "embedding_epochs": 2}
    image_settings = {"mirrored": True, "image_size": 96, "batch_size": 8}
    for notebook, settings in zip(NOTEBOOKS, (caption_settings, image_settings), strict=True):
        done = run_notebook(ROOT / notebook, dataset=dataset, prepared=folder, **settings)
        assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_caption_extraction_writes_a_prepared_folder(prepared):
    folder, _ = prepared
    opened = Prepared(folder)
    assert opened.splits == SPLITS
    assert opened.parameters["minimum_count"] == 2
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


# ---- the two notebooks as they are in the repository ---------------------------------------------


@pytest.fixture(params=NOTEBOOKS)
def committed(request):
    return nbformat.read(ROOT / request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_committed_notebooks_are_executed_in_order(committed):
    nbformat.validate(committed)
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))


def test_committed_notebooks_show_results_alone(committed):
    outputs = [output for cell in code_cells(committed) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4


def test_committed_notebooks_begin_with_parameters(committed):
    tags = [cell.metadata.get("tags", []) for cell in code_cells(committed)]
    assert tags[0] == ["parameters"]
    assert not any(tags[1:])


def test_committed_notebooks_are_small_and_bare(committed):
    assert len(nbformat.writes(committed)) < MAX_BYTES
    assert set(committed.metadata) == {"kernelspec", "language_info"}
    assert committed.metadata.language_info == {"name": "python"}


# ---- the runner ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner():
    """tools/run_notebook.py as a module."""
    path = ROOT / "tools" / "run_notebook.py"
    spec = importlib.util.spec_from_file_location("run_notebook", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook(tmp_path):
    """Write a small notebook with the given last cell; returns its path."""

    def write(last_cell):
        cells = [
            nbformat.v4.new_code_cell('name = "x"\ncount = 1', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("import sys\nfrom captioning.files import InputError"),
            nbformat.v4.new_code_cell(last_cell),
        ]
        path = tmp_path / "small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


def test_parameters_reach_the_cells_and_progress_stays_out_of_the_result(notebook, tmp_path):
    path = notebook("print(name, count + 1)\nprint('progress', file=sys.stderr)")
    before = path.read_bytes()
    saved = tmp_path / "saved.ipynb"
    done = run_notebook(path, "--save", saved, name="it's 5", count=41)
    assert (done.returncode, done.stdout) == (0, "it's 5 42\n")
    assert "progress" in done.stderr
    assert path.read_bytes() == before
    parameters, injected, _, last = nbformat.read(saved, as_version=4).cells
    assert parameters.source == 'name = "x"\ncount = 1'
    assert injected.source == 'name = "it\'s 5"\ncount = 41'
    assert [output.text for output in last.outputs] == ["it's 5 42\n"]


def test_an_unknown_parameter_is_refused(notebook):
    done = run_notebook(notebook("print('never run')"), encodr="vgg16")
    message = "error: encodr: no such parameter; there are name, count\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("count=many", "count=many: expected int, as in count=1"),
        ("count=True", "count=True: expected int, as in count=1"),
        ("count", "count: expected NAME=VALUE"),
    ],
)
def test_wrong_values_are_refused(notebook, runner, assignment, message):
    with pytest.raises(InputError) as error:
        runner.set_parameters(runner.read_notebook(notebook("")), [assignment])
    assert str(error.value) == message


def test_relative_parameters_are_told_where_they_start(notebook):
    done = run_notebook(notebook("print(name)"), name="x")  # in another folder than the root
    assert (done.returncode, done.stdout) == (0, "x\n")
    assert done.stderr == f"relative paths among the parameters start at {ROOT}\n"


@pytest.mark.parametrize("count", [1, 2])
def test_a_map_of_one_or_two_vectors(count):
    points, shares = principal_components(np.arange(3.0 * count).reshape(count, 3))
    assert points.shape == (count, 2)
    assert np.allclose(points[:, 1], 0)
    assert shares.tolist() == pytest.approx([count - 1, 0])


def test_captions_without_a_word_are_told(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "captions.csv").write_text("".join(f"{number}.png,!!!\n" for number in range(3)))
    done = run_notebook(
        ROOT / "caption_extraction.ipynb", dataset=tmp_path, prepared=tmp_path / "prepared"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {tmp_path}: its training captions hold no word; is the tokenizer right?"
    )


def test_an_input_error_ends_in_its_message(notebook):
    done = run_notebook(notebook('raise InputError("x: no such folder; give another")'))
    assert (done.returncode, done.stderr) == (2, "error: x: no such folder; give another\n")


def test_another_error_ends_in_its_traceback(notebook):
    done = run_notebook(notebook("print(1 / 0)"))
    assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in done.stderr


def test_what_is_no_notebook_is_refused(runner, tmp_path):
    (tmp_path / "text.ipynb").write_text("text")
    with pytest.raises(InputError, match=r"text.ipynb: not a notebook"):
        runner.read_notebook(tmp_path / "text.ipynb")
    with pytest.raises(InputError, match=r"absent.ipynb: cannot be read"):
        runner.read_notebook(tmp_path / "absent.ipynb")


def test_an_interrupted_run_says_so_and_leaves_no_kernel(notebook):
    path = notebook("import os, time\nprint(os.getpid())\ntime.sleep(60)")
    command = [sys.executable, ROOT / "tools" / "run_notebook.py", path]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        kernel = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip().startswith("stopped; ")
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
