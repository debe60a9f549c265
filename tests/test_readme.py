"""README.md and docs/: commands parse, files and tests exist, links lead somewhere."""

import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

from captioning import __main__ as package
from captioning.datasets import read_dataset

ROOT = Path(__file__).resolve().parents[1]
README, QUESTIONS = ROOT / "README.md", ROOT / "docs" / "questions.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("data/*/README.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAMS = ("python", "papermill", "make", "pytest")
OTHER_PROGRAMS = ("pip", "git", "curl")  # their options are not ours to check
OWN_FILE = re.compile(
    r"(captioning|docs|tests|tools|images|\.ci|data/(sample|encoders|pretrained))/[^\s*<]*"
)
HELP = [["train.py"], ["test.py"], *[["-m", "captioning", name] for name in package.COMMANDS]]


def inline_code(text):
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))


def commands():
    """(document, words) of every command, whether in a block or in a sentence."""
    found = {}
    for path, text in TEXTS.items():
        blocks = "".join(BLOCK.findall(text)).replace("\\\n", " ")
        for line in [*blocks.splitlines(), *inline_code(text)]:
            line = re.sub(r"^([A-Z_]+=\S+ )+", "", line.replace(r"\|", "|").partition(" | ")[0])
            if line.startswith(tuple(f"{program} " for program in PROGRAMS)) and "..." not in line:
                found[path.name, tuple(shlex.split(line, comments=True))] = None
    return list(found)


COMMANDS = commands()


def of(*words):
    """(document, arguments) of the commands that begin with `words`."""
    size = len(words)
    return [(name, list(line[size:])) for name, line in COMMANDS if line[:size] == words]


def parameters(notebook):
    """The names in a notebook's parameters cell."""
    cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return set(re.findall(r"^(\w+) = ", "".join(cell["source"]), re.MULTILINE))


NOTEBOOKS = {path.name: parameters(path.name) for path in ROOT.glob("*.ipynb")}


@pytest.fixture(scope="module")
def parse():
    """A function that parses the arguments of python; it raises SystemExit if they are wrong."""
    scripts = {name: runpy.run_path(str(ROOT / name)) for name in ("train.py", "test.py")}

    def call(first, *arguments):
        if first in scripts:
            return scripts[first]["parse_arguments"](list(arguments))
        _, command, *rest = arguments  # of python -m captioning
        if command == "train":
            return call("train.py", *rest)
        group = package.COMMANDS[command][0]
        module = importlib.import_module(f"captioning.extras.{group}.{command}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "main", lambda options: options)
            return package.main([command, *rest])

    return call


def test_the_readme_is_short():
    assert len(TEXTS[README].split()) <= 1300


@pytest.mark.parametrize(("document", "arguments"), of("python"))
def test_python_commands_parse(parse, document, arguments):
    first, *rest = arguments
    assert all((ROOT / word).exists() for word in rest if OWN_FILE.fullmatch(word)), rest
    if first == "-c":  # the look into a checkpoint
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            shipped = "data/pretrained/captioner.safetensors"
            exec(rest[0].replace("weights/best.safetensors", shipped), {})
        assert "efficientnet_lite2" in printed.getvalue()
    elif first == "-m" and rest[0] != "captioning":
        assert (ROOT / rest[0].replace(".", "/")).with_suffix(".py").exists()
    elif first in ("train.py", "test.py", "-m"):
        if rest and rest != ["captioning"]:
            parse(first, *rest)
    else:
        assert (ROOT / first).is_file()


def test_papermill_sets_parameters_that_the_notebook_has():
    lines = of("papermill")
    assert len(lines) >= 2
    for document, (notebook, output, *rest) in lines:
        assert output.endswith(".ipynb"), (document, output)
        assert rest[::3] == ["-p"] * (len(rest) // 3), (document, rest)
        assert set(rest[1::3]) <= NOTEBOOKS[notebook], (document, rest)
    known = set.union(*NOTEBOOKS.values())
    for path, text in TEXTS.items():
        for code in inline_code(text):
            if code.startswith("-p ") and code != "-p NAME VALUE":
                assert code.split()[1] in known, (path.name, code)
    rows = re.findall(r"^\| `(\w+)` \|", TEXTS[QUESTIONS], re.MULTILINE)
    assert len(rows) > 5
    assert set(rows) <= known


def test_make_targets_and_test_files_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for document, words in of("make"):
        assert {word for word in words if "=" not in word} <= set(targets), (document, words)
    for document, words in of("pytest"):
        for word in words:
            assert not word.startswith("tests") or (ROOT / word).is_file(), (document, word)


def test_options_named_in_sentences_exist(parse):
    known = set()
    for words in HELP:
        with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
            parse(*words, "--help")
        known |= set(re.findall(r"--[a-z][a-z0-9-]*", text.getvalue()))
    for path, text in TEXTS.items():
        for code in inline_code(text):
            if code.startswith(("--", "train.py ", "test.py ", "caption")):
                options = re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)
                assert set(options) <= known, (path.name, code)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_tests_named_exist(path):
    test_file = None
    for code in re.findall(r"`([^`\n]+)`", TEXTS[path]):
        if match := OWN_FILE.fullmatch(code.partition("::")[0]):
            assert (ROOT / match[0]).exists(), code
        if match := re.fullmatch(r"(?:tests/)?(test_\w+\.py)?(?:::)?(test_\w+|Test\w+)?", code):
            test_file = match[1] or test_file
            text = (ROOT / "tests" / test_file).read_text(encoding="utf-8")
            assert re.search(rf"^\s*(def|class) {match[2] or ''}\b", text, re.MULTILINE), code


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[path]):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.is_relative_to(ROOT), link
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_file_tree_is_the_repository():
    (tree,) = (block for block in BLOCK.findall(TEXTS[QUESTIONS]) if "captioning/ " in block)
    modules = set(re.findall(r"^ +(\S+\.py) ", tree, re.MULTILINE))
    assert modules == {path.name for path in ROOT.glob("captioning/[!_]*.py")} | {"__main__.py"}
    for name in re.findall(r"^(\S+) ", tree, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_the_captions_are_read_as_they_stand(tmp_path):
    (block,) = (block for block in BLOCK.findall(TEXTS[README]) if block.startswith("a.jpg"))
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "captions.csv").write_text(block)
    data = read_dataset(tmp_path)
    assert data.captions["a.jpg"] == ["A dog runs on the beach .", "A brown dog, all wet ."]
    assert not data.problems


def test_every_picture_has_its_licence():
    text = (ROOT / "images" / "LICENSES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == {path.name for path in ROOT.glob("images/*.jpg")}
    for name, cells in rows:
        assert len([cell for cell in cells.split("|") if cell.strip()]) == 4, name
