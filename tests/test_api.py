"""The three lines of Python that others write, and the page that explains them."""

import doctest
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import captioning
from captioning import Captioner, InputError
from captioning.captioner import PHOTOGRAPHS, Caption

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def captioner(tiny_checkpoint):
    return Captioner.load(tiny_checkpoint)


def test_importing_the_package_is_quick_and_leaves_tensorflow_alone():
    code = (
        "import sys, captioning\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'Captioner' in captioning.__all__\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        captioning.Nothing  # noqa: B018
    assert captioning.Captioner is Captioner


def test_the_examples_of_the_documentation_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "docs/api.md", None, 0)
    options = doctest.ELLIPSIS | doctest.REPORT_NDIFF
    told = []
    result = doctest.DocTestRunner(optionflags=options).run(test, out=told.append)
    assert result.attempted > 12
    assert result.failed == 0, "".join(told)


def test_one_photograph_gives_a_string_and_several_a_list(captioner, photographs):
    one = captioner.caption(photographs[0], beam_width=2)
    several = captioner.caption(photographs, beam_width=2)
    assert isinstance(one, str)
    assert len(one.split()) > 1
    assert len(several) == 3
    assert several[0] == one
    assert captioner.caption(str(photographs[0]), beam_width=2) == one
    assert captioner.caption((path for path in photographs), beam_width=2) == several
    described = captioner.describe(photographs[0], beam_width=2)
    assert isinstance(described, Caption)
    assert described.text == one
    assert captioner.describe([photographs[0]], beam_width=2) == [described]


def test_a_file_an_image_and_an_array_of_one_picture_are_one(captioner, photographs):
    path = photographs[0]  # a PNG, which is decoded at its own scale alone
    with Image.open(path) as image:
        colour, grey = image.convert("RGB"), image.convert("L")
        found = captioner.describe([path, image, colour, np.asarray(colour)])
    assert len({one.text for one in found}) == 1
    likelihoods = [one.log_probability for one in found]
    assert likelihoods == pytest.approx([likelihoods[0]] * 4, abs=1e-4)
    from_image, from_array = captioner.describe([grey, np.asarray(grey)])
    assert from_array.text == from_image.text
    assert from_array.log_probability == pytest.approx(from_image.log_probability, abs=1e-4)
    assert from_array.log_probability != pytest.approx(likelihoods[0], abs=1e-4)


def test_more_photographs_than_are_encoded_at_once_and_none(captioner, photographs):
    many = [photographs[number % 3] for number in range(2 * PHOTOGRAPHS + 1)]
    assert captioner.caption(many) == (captioner.caption(photographs) * PHOTOGRAPHS)[: len(many)]
    assert captioner.caption([]) == []


PIXELS = np.zeros((6, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "int: expected a photograph"),
        (None, "NoneType: expected a photograph"),
        ([PIXELS, 3], "int: expected a photograph"),
        (b"photo.jpg", "bytes: expected a photograph"),
        ({"photo.jpg": "a cat"}, "dict: expected a photograph"),
        (PIXELS / 255, r"float64 \(6, 8, 3\): expected a picture, uint8"),
        (PIXELS[None], r"uint8 \(1, 6, 8, 3\)"),
        (PIXELS[..., :2], r"uint8 \(6, 8, 2\)"),
        (np.zeros((6, 8, 4), np.uint8), "leave out an alpha channel"),
        (PIXELS[:0], r"uint8 \(0, 8, 3\)"),
        (Image.new("RGB", (0, 5)), "the picture: damaged picture .*no pixels"),
        ("nothing.jpg", "nothing.jpg: no such file"),
        (Image.new("1", (20_000, 10_000)), "the picture: too large"),
    ],
    ids=str,
)
def test_what_is_no_photograph_is_told(captioner, given, told):
    with pytest.raises(InputError, match=told):
        captioner.caption(given)


def test_numbers_of_numpy_serve_as_well(captioner):
    expected = captioner.caption(PIXELS, beam_width=2, length_penalty=0.5)
    found = captioner.caption(PIXELS, beam_width=np.int64(2), length_penalty=np.float32(0.5))
    assert found == expected
    assert captioner.caption(PIXELS, beam_width=np.int16(3)) == captioner.caption(PIXELS, 3)


def test_pictures_of_a_wrong_size_are_refused_and_do_no_harm(captioner):
    size = captioner.encoder.image_size
    assert captioner.encode([]).shape == (0, *captioner.model.config.feature_shape)
    for wrong in (np.zeros((size, size + 1, 3), np.uint8), np.zeros((size, size), np.uint8), 3):
        with pytest.raises(InputError, match="expected"):
            captioner.encode([np.zeros((size, size, 3), np.uint8), wrong])
    with ThreadPoolExecutor(4) as pool:  # TensorFlow's graph would hang after a failed call
        captions = pool.map(captioner.caption, [PIXELS] * 8)
        assert len(set(captions)) == 1


@pytest.mark.parametrize("width", [0, -1, 2.0, "3"])
def test_a_beam_has_a_width(captioner, width):
    with pytest.raises(InputError, match="whole number from 1 up"):
        captioner.caption(PIXELS, beam_width=width)


@pytest.mark.parametrize("penalty", [-1, 11, 1e300, float("nan"), float("inf"), "1", None])
def test_a_length_penalty_has_bounds(captioner, penalty):
    with pytest.raises(InputError, match="number from 0 to 10"):
        captioner.caption(PIXELS, beam_width=2, length_penalty=penalty)
