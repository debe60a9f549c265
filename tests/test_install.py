"""The project as others install it: a wheel that carries its models, and three commands."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import captioning

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet"]


def run(*command, cwd=ROOT, status=0):
    """Run a command as a user's shell would, away from this repository's modules.

    It returns what the command printed, to stderr if it has to fail.
    """
    environment = {**os.environ, "PYTHONWARNINGS": "", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    command = list(map(str, command))
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def programs(tmp_path):
    """The programs of a new environment, which sees the packages of this one."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def working(tmp_path):
    """An empty folder that is not the repository."""
    folder = tmp_path / "working"
    folder.mkdir()
    return folder


def test_the_wheel_carries_the_program_its_models_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {info.filename: info.file_size for info in archive.infolist()}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "captioning").rglob("*.py")}
    assert modules | {"captioning/extras/study/report.html"} <= set(held)
    shipped = ["train.py", "test.py", "data/pretrained/captioner.safetensors"]
    shipped += ["data/pretrained/captioner.tflite", "data/encoders/LICENSE"]
    shipped += ["data/encoders/efficientnet_lite2.safetensors"]
    for name in shipped:
        assert held[f"captioning/shipped/{name}"] == (ROOT / name).stat().st_size
    assert wheel.stat().st_size < 65e6
    information = f"captioning-{captioning.__version__}.dist-info"
    assert {name.split("/")[0] for name in held} == {"captioning", information}
    assert f"{information}/licenses/LICENSE" in held
    assert not [name for name in held if "__pycache__" in name or "sample" in name]


def test_the_wheel_says_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
    assert (metadata["Name"], metadata["Version"]) == ("captioning", captioning.__version__)
    assert metadata.get_all("Provides-Extra") == ["gpu", "train"]


def test_the_requirements_are_those_that_are_tested():
    """What an installation may choose includes the versions that are pinned."""
    lines = [
        line
        for file in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
    ]
    pinned = [Requirement(line) for line in lines if not line.startswith("-")]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pinned}
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert requirement.specifier.contains(versions[requirement.name]), requirement
    train = PROJECT["optional-dependencies"]["train"]
    needed = {Requirement(line).name for line in [*PROJECT["dependencies"], *train]}
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    notebooks = {"jupyter", "papermill", "adjustText"}
    assert needed | notebooks == set(re.findall(r"^([\w-]+)==", listed, re.MULTILINE))


def test_an_installation_captions_from_any_folder(wheel, programs, working):
    run(*PIP, "--python", programs / "python", "install", *OFFLINE, wheel)
    picture = ROOT / "images" / "cat.jpg"
    out = run(programs / "caption", picture, cwd=working)
    assert re.search(r"\w+( \w+){2,}", out)
    usage = run(programs / "caption-train", "--help", cwd=working)
    assert usage.startswith("usage: ")
    told = run(programs / "python", "-m", "captioning", "--help", cwd=working)
    assert {"caption", "train", "web"} <= set(re.findall(r"^ +([a-z]+) ", told, re.MULTILINE))
    told = run(programs / "python", "-m", "captioning", "photo.jpg", cwd=working, status=2)
    assert "photo.jpg" in told.strip().splitlines()[-1]
    place = "import captioning; print(captioning.__file__)"
    assert str(ROOT) not in run(programs / "python", "-c", place, cwd=working)
    assert not list(working.iterdir())


def test_an_empty_environment_captions_without_tensorflow(wheel, tmp_path, working):
    venv.create(tmp_path / "empty", symlinks=True)
    programs = tmp_path / "empty" / "bin"
    pip = [*PIP, "--python", programs / "python", "install", "--quiet"]
    probe = [*map(str, pip), "--dry-run", "--no-deps", "filelock"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs a package index")
    run(*pip, wheel)
    find = "from importlib.util import find_spec as f; print(*map(f, ('tensorflow', 'keras')))"
    assert run(programs / "python", "-c", find) == "None None\n"
    out = run(programs / "caption", ROOT / "images" / "cat.jpg", cwd=working)
    assert re.search(r"\w+( \w+){2,}", out)
    assert run(programs / "caption-web", "--help", cwd=working).startswith("usage: ")
    model = ("--model", ROOT / "data/pretrained/captioner.safetensors")
    for command in (("caption-train",), ("caption", ROOT / "images/cat.jpg", *model)):
        told = run(programs / command[0], *command[1:], cwd=working, status=2)
        assert re.fullmatch(
            r'error: \w+ is not installed in this environment; .*pip install "\.\[train\]"\n', told
        )


def test_an_editable_installation_runs_the_repository(programs, working):
    run(*PIP, "--python", programs / "python", "install", *OFFLINE, "--editable", ROOT)
    place = "import captioning.files as f; print(f.__file__, f.shipped('test.py'))"
    found = run(programs / "python", "-c", place, cwd=working).split()
    assert found == [str(ROOT / "captioning" / "files.py"), str(ROOT / "test.py")]
    assert run(programs / "caption", "--help", cwd=working).startswith("usage: ")
