"""The README holds: its commands can be typed, its files are there, its pictures may be shown."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioning import dataset
from captioning.checkpoint import Checkpoint
from captioning.web import __main__ as web

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = ("caption_extraction.ipynb", "image_extraction.ipynb")

# What a command may name without its lying in the repository.
OF_THE_USER = {"photo.jpg", "my-pictures", "best.keras", "FILE", "FOLDER", "crawl-300d-2M.vec"}
MADE_BY_COMMANDS = {
    "data/flickr8k",
    "prepared",
    "prepared-mine",
    "weights",
    "weights/best.keras",
    "weights-mine",
    "weights-mine/best.keras",
    "weights/pooled",
    "weights/pooled/best.keras",
}
OTHER_PROGRAMS = {"jupyter", "pip", ".", "python3"}  # not this project's to promise


def fenced_blocks():
    return re.findall(r"^```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def inline_code():
    prose = re.sub(r"^```\n.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def command_lines():
    """Every command of the README as a list of words, whether in a block or in a sentence."""
    lines = []
    for block in fenced_blocks():
        if block.startswith(("caption_extraction.ipynb", "a.jpg")):
            continue  # the file tree, the captions
        lines += block.replace("\\\n", " ").splitlines()
    programs = {"python", "make", "pytest", *OTHER_PROGRAMS}
    lines += [code for code in inline_code() if " " in code and code.split()[0] in programs]
    return list(dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines))


COMMANDS = command_lines()


def commands_of(*words):
    """The arguments of all commands that begin with `words`."""
    found = [command[len(words) :] for command in COMMANDS if command[: len(words)] == words]
    assert found, f"the README has no command {' '.join(words)}"
    return found


def load(path):
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_notebook():
    return load(ROOT / "tools" / "run_notebook.py")


def test_every_command_is_of_a_kind_that_is_checked_below():
    checked = [
        ("python", "train.py"),
        ("python", "test.py"),
        ("python", "tools/run_notebook.py"),
        ("python", "-m", "captioning.dataset"),
        ("python", "-m", "captioning.web"),
        ("python", "-m", "captioning"),
        ("python", "-c"),
        ("make",),
        ("pytest",),
    ]
    unknown = [
        command
        for command in COMMANDS
        if command[0] not in OTHER_PROGRAMS
        and not any(command[: len(start)] == start for start in checked)
    ]
    assert not unknown


def test_the_captions_are_read_as_they_stand(tmp_path):
    (block,) = (block for block in fenced_blocks() if block.startswith("a.jpg"))
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "captions.csv").write_text(block)
    data = dataset.read_dataset(tmp_path)
    assert data.captions["a.jpg"] == ["A dog runs on the beach .", "A brown dog, all wet ."]
    assert len(data.captions["b.jpg"]) == 1
    assert not data.problems


def test_train_commands_are_understood():
    script = load(ROOT / "train.py")
    for arguments in commands_of("python", "train.py"):
        if arguments == ("--help",):
            continue
        options = script.parse_arguments(list(arguments))
        assert {options.data, options.output} <= MADE_BY_COMMANDS


def test_caption_commands_are_understood_and_name_files_that_are_there():
    script = load(ROOT / "test.py")
    for arguments in commands_of("python", "test.py"):
        options = script.parse_arguments(list(arguments))
        for name in options.image or []:
            assert name in OF_THE_USER or (ROOT / name).exists(), name
        assert options.model is None or options.model in OF_THE_USER | MADE_BY_COMMANDS
        assert options.data in MADE_BY_COMMANDS


def test_all_photographs_are_captioned_and_none_was_picked():
    drawing = "images/captioned.jpg"
    (shown,) = (words for words in commands_of("python", "test.py") if drawing in words)
    named = {name for name in shown if name.startswith("images/") and name != drawing}
    photographs = {f"images/{path.name}" for path in (ROOT / "images").glob("*.jpg")}
    assert named == photographs - {drawing}


def test_notebook_commands_name_notebooks_and_parameters(run_notebook, monkeypatch):
    executed = []
    monkeypatch.setattr(run_notebook, "execute", executed.append)
    monkeypatch.chdir(ROOT)
    commands = commands_of("python", "tools/run_notebook.py")
    for arguments in commands:
        monkeypatch.setattr(sys, "argv", ["run_notebook.py", *arguments])
        assert run_notebook.main() == 0
    assert len(executed) == len(commands)


def notebook_parameters(run_notebook, name):
    notebook = run_notebook.read_notebook(ROOT / name)
    return run_notebook.read_parameters(
        notebook.cells[run_notebook.parameters_cell(notebook)].source
    )


def test_the_table_of_parameters_names_parameters(run_notebook):
    known = {}
    for name in NOTEBOOKS:
        known |= notebook_parameters(run_notebook, name)
    rows = re.findall(r"^\| `(\w+)=([^`]+)` \|", README, re.MULTILINE)
    assert len(rows) >= 5
    for name, value in rows:
        assert name in known, name
        run_notebook.parse_value(name, value, known[name])
    for code in inline_code():
        if assignment := re.fullmatch(r"(?:--set )?([a-z_]+)=(\S+)", code):
            assert assignment[1] in known, code


def test_the_download_command_is_understood(monkeypatch, capsys):
    monkeypatch.setattr(dataset, "find_layout", lambda folder: folder)
    for arguments in commands_of("python", "-m", "captioning.dataset"):
        assert dataset.main(list(arguments)) == 0
        assert arguments[-1] in MADE_BY_COMMANDS
        assert arguments[-1] in capsys.readouterr().err


def test_the_command_of_the_page_is_understood():
    for arguments in commands_of("python", "-m", "captioning.web"):
        assert web.parse_arguments(list(arguments)).host == "127.0.0.1"


def test_the_package_tells_what_there_is():
    run = subprocess.run(
        [sys.executable, "-m", "captioning"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    for command in ("caption ", "caption-train ", "python -m captioning.web"):
        assert f"\n  {command}" in run.stdout


def test_the_look_into_a_checkpoint_runs(monkeypatch, capsys):
    checkpoint = Checkpoint(None, None, {"name": "some encoder"}, {"epoch": 3})
    monkeypatch.setattr(Checkpoint, "load", lambda path: checkpoint)
    for (code,) in commands_of("python", "-c"):
        exec(code, {})
    assert capsys.readouterr().out == "{'name': 'some encoder'} {'epoch': 3}\n"


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_targets_exist():
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # of the make that runs these tests
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    for arguments in commands_of("make"):
        command = ["make", "--dry-run", *arguments]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout


def test_pytest_commands_name_test_files():
    for arguments in commands_of("pytest"):
        for name in arguments:
            assert (ROOT / name).is_file()


def test_options_named_in_sentences_exist():
    options = set()
    for script in ("train.py", "test.py", "tools/run_notebook.py"):
        run = subprocess.run(
            [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr
        options |= set(re.findall(r"--[a-z][a-z0-9-]*", run.stdout))
    named = {
        option
        for code in inline_code()
        if code.split()[0] not in OTHER_PROGRAMS
        for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)
    }
    assert len(named) > 10
    assert named <= options


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 5
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_the_file_tree_is_the_repository():
    (tree,) = (block for block in fenced_blocks() if block.startswith("caption_extraction.ipynb"))
    folder, modules = ROOT, set()
    for line in tree.splitlines():
        names = re.match(r" *(\S+(?:, \S+)*)  +\S", line)[1].split(", ")
        for name in names:
            if line.startswith(" "):
                assert (folder / name).is_file(), line
                modules.add(name)
            else:
                folder = ROOT / name
                assert folder.exists(), line
                assert folder.is_dir() == name.endswith("/"), line
    expected = {path.name for path in (ROOT / "captioning").glob("*.py")} - {"__init__.py"}
    assert modules == expected


def test_every_picture_has_its_licence():
    text = (ROOT / "images" / "LICENSES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|$", text, re.MULTILINE)
    pictures = {path.name for path in (ROOT / "images").iterdir()} - {"LICENSES.md"}
    assert pictures == {name for name, _ in rows}
    for name, cells in rows:
        assert len([cell for cell in cells.split("|") if cell.strip()]) == 4, name
