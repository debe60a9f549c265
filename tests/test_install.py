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
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def make_environment(tmp_path_factory):
    """A function that makes an environment which sees the packages of this one."""

    def make():
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=False, symlinks=True)
        (site,) = folder.glob("lib/python3*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        return folder / "bin"

    return make


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info for info in archive.infolist()}


def test_the_wheel_carries_the_program_and_its_models(wheel):
    held = names(wheel)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "captioning").rglob("*.py")}
    assert {name for name in modules if "__pycache__" not in name} <= set(held)
    for name in (
        "train.py",
        "test.py",
        "data/encoders/efficientnet_lite2.safetensors",
        "data/encoders/LICENSE",
        "data/pretrained/captioner.safetensors",
        "data/pretrained/captioner.tflite",
    ):
        assert held[f"captioning/shipped/{name}"].file_size == (ROOT / name).stat().st_size
    assert "captioning/extras/study/report.html" in held
    assert wheel.stat().st_size < 65e6


def test_the_wheel_puts_nothing_beside_the_package(wheel):
    held = names(wheel)
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
    pinned = {}
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            if not line.startswith("-"):
                requirement = Requirement(line)
                pinned[requirement.name] = next(iter(requirement.specifier)).version
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for line in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[requirement.name]), line
    train = PROJECT["optional-dependencies"]["train"]
    needed = {Requirement(line).name for line in [*PROJECT["dependencies"], *train]}
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    notebooks = {"jupyter", "papermill", "adjustText"}
    assert needed | notebooks == set(re.findall(r"^([\w-]+)==", listed, re.MULTILINE))


def test_an_installation_captions_from_any_folder(wheel, make_environment, tmp_path):
    programs = make_environment()
    run(*PIP, "--python", programs / "python", "install", *OFFLINE, wheel)
    picture = ROOT / "images" / "cat.jpg"
    out = run(programs / "caption", picture, cwd=tmp_path)
    assert re.search(r"\w+( \w+){2,}", out)
    usage = run(programs / "caption-train", "--help", cwd=tmp_path)
    assert usage.startswith("usage: ")
    told = run(programs / "python", "-m", "captioning", "--help", cwd=tmp_path)
    assert {"caption", "train", "web"} <= set(re.findall(r"^ +([a-z]+) ", told, re.MULTILINE))
    told = run(programs / "python", "-m", "captioning", "photo.jpg", cwd=tmp_path, status=2)
    assert "photo.jpg" in told.strip().splitlines()[-1]
    place = "import captioning; print(captioning.__file__)"
    assert str(ROOT) not in run(programs / "python", "-c", place, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_empty_environment_captions_without_tensorflow(wheel, tmp_path):
    venv.create(tmp_path / "empty", symlinks=True)
    programs, working = tmp_path / "empty" / "bin", tmp_path / "working"
    working.mkdir()
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
    for command in (("caption-train",), ("caption", ROOT / "images/cat.jpg", "--beam-width", 3)):
        told = run(programs / command[0], *command[1:], cwd=working, status=2)
        assert re.fullmatch(
            r'error: \w+ is not installed; pip install "captioning\[train\]"\n', told
        )


def test_an_editable_installation_runs_the_repository(make_environment, tmp_path):
    programs = make_environment()
    run(*PIP, "--python", programs / "python", "install", *OFFLINE, "--editable", ROOT)
    place = "import captioning.files as f; print(f.__file__, f.shipped('test.py'))"
    found = run(programs / "python", "-c", place, cwd=tmp_path).split()
    assert found == [str(ROOT / "captioning" / "files.py"), str(ROOT / "test.py")]
    assert run(programs / "caption", "--help", cwd=tmp_path).startswith("usage: ")
