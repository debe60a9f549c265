"""The three lines of Python that others write, and the page that explains them."""

import doctest
import io
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
from captioning.captions import OPENED_AT_ONCE, Caption

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


@pytest.mark.parametrize(("page", "least"), [("api.md", 13), ("light.md", 4)])
def test_the_examples_of_the_documentation_hold(page, least, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page, None, 0)
    options = doctest.ELLIPSIS | doctest.REPORT_NDIFF
    told = []
    result = doctest.DocTestRunner(optionflags=options).run(test, out=told.append)
    assert result.attempted >= least
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
    assert captioner.describe(io.BytesIO(path.read_bytes())).text == found[0].text
    likelihoods = [one.log_probability for one in found]
    assert likelihoods == pytest.approx([likelihoods[0]] * 4, abs=1e-4)
    from_image, from_array = captioner.describe([grey, np.asarray(grey)])
    assert from_array.text == from_image.text
    assert from_array.log_probability == pytest.approx(from_image.log_probability, abs=1e-4)
    assert from_array.log_probability != pytest.approx(likelihoods[0], abs=1e-4)


def test_more_photographs_than_are_encoded_at_once_and_none(captioner, photographs):
    many = [photographs[number % 3] for number in range(2 * OPENED_AT_ONCE + 1)]
    assert captioner.caption(many) == (captioner.caption(photographs) * OPENED_AT_ONCE)[: len(many)]
    assert captioner.caption([]) == []


PIXELS = np.zeros((6, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (PIXELS / 255, r"float64 \(6, 8, 3\): expected uint8"),
        (PIXELS[None], "the picture: damaged"),
        (PIXELS[:0], "the picture: damaged"),
        ("nothing.jpg", "nothing.jpg: no such file"),
        (Image.new("1", (20_000, 10_000)), "the picture: too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_photograph_is_an_input_error(captioner, given, told):
    with pytest.raises(InputError, match=told):
        captioner.caption(given)


def test_numbers_of_numpy_are_accepted(captioner):
    expected = captioner.caption(PIXELS, beam_width=2, length_penalty=0.5)
    found = captioner.caption(PIXELS, beam_width=np.int64(2), length_penalty=np.float32(0.5))
    assert found == expected


def test_threads_may_share_a_captioner(captioner):
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(captioner.caption, [PIXELS] * 8))) == 1


@pytest.mark.parametrize("search", [(0, 0.7), (-1, 0.7), (2, -1), (2, 11), (2, float("nan"))])
def test_the_search_has_bounds(captioner, search):
    with pytest.raises(InputError, match="expected 1 or more, penalty 0 to 10"):
        captioner.caption(PIXELS, beam_width=search[0], length_penalty=search[1])


def test_another_backend_of_keras_is_one_clear_line():
    code = (
        "import sys, types\n"
        "keras = types.ModuleType('keras')\n"
        "keras.backend = types.SimpleNamespace(backend=lambda: 'jax')\n"
        "sys.modules['keras'] = keras\n"
        "from captioning import Captioner\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "InputError: Keras was imported with the backend jax" in done.stderr
