import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from captioning.files import InputError
from captioning.report import CaptionedImage, Report, write_report

SIZE = 224

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "</style></title><img src=x onerror='window.hacked = 1'>",
    '"><img src=x onerror="window.hacked = 1"><a title=\'',
    "' onmouseover='window.hacked = 1",
    "--> <!-- ]]> &lt;b&gt; %%title %%cards $title \\u003c",
    "<link rel=stylesheet href=http://127.0.0.1:9/x><base href=http://127.0.0.1:9>",
]


class Page(HTMLParser):
    """What a browser would build: elements with their attributes and the text in them."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements = []
        self.texts = []
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append((tag, ""))

    def handle_data(self, data):
        self.texts[-1:] = [(self.texts[-1][0], self.texts[-1][1] + data)] if self.texts else []

    def all(self, tag, **wanted):
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def text(self, tag):
        return [text.strip() for name, text in self.texts if name == tag]


def picture(path, size=(SIZE, SIZE), **options):
    path.parent.mkdir(exist_ok=True)
    gradient = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
    Image.fromarray(gradient.astype(np.uint8)).save(path, **options)
    return path


def attention(*peaks, shape=(3, 4)):
    maps = np.full((len(peaks), *shape), 0.01)
    for one, peak in zip(maps, peaks, strict=True):
        one[peak] = 1 - one.sum() + 0.01
    return maps


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "broken.jpg").parent.mkdir()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    images = [
        CaptionedImage(
            "10.jpg", picture(folder / "10.jpg"), "a woman walks", ["A lady in a Café ."], 12.34
        ),
        CaptionedImage(
            "9.jpg",
            picture(folder / "9.png", (400, 300)),
            "a dog runs",
            ["A brown dog is running .", "The T-shirt"],
            150.0,
            ["a", "dog", "runs"],
            attention((0, 0), (2, 3), (1, 1)),
        ),
        CaptionedImage("broken.jpg", folder / "broken.jpg", "a man sits", ["Two men"], 0.0),
        CaptionedImage("missing.jpg", folder / "missing.jpg", "", ["A hotdog"], 40.0),
    ]
    return Report(
        title="Captions of the dev split",
        facts={"split": "dev, 4 images", "decoding": "greedy"},
        rows=[
            ("this model", {"BLEU-4": 20.04, "CIDEr-D": 50.06}),
            ("floor", {"BLEU-4": float("nan"), "CIDEr-D": 5.5, "METEOR": 9.0}),
        ],
        diversity={"vocabulary": 1234, "distinct": 0.625, "copied": 0.0, "length": 9.71, "new": 2},
        history=[
            {"epoch": 1, "train_loss": 5.0, "dev_loss": 4.5, "sample": "a dog"},
            {"epoch": 2, "train_loss": 4.0, "dev_loss": 4.0, "dev CIDEr-D": 30.5},
            {"epoch": 3, "train_loss": 3.5, "dev_loss": float("nan"), "dev CIDEr-D": 41.25},
        ],
        images=images,
    )


@pytest.fixture
def write(tmp_path):
    def write(report):
        write_report(tmp_path / "report.html", report)
        return Page(tmp_path / "report.html")

    return write


def hostile(report, text):
    """Put `text` wherever the caller's words go."""
    image = replace(
        report.images[1],
        image=text,
        caption=text,
        references=[text, text],
        words=[text, "dog", text],
    )
    return Report(
        title=text,
        facts={text: text},
        rows=[(text, {text: 1.0})],
        diversity={text: 1.0},
        history=[{"epoch": 1, text: 1.0, text + "loss": 2.0}],
        images=[image, replace(image, attention=None), replace(image, path=image.path / "none")],
    )


def test_scores_stand_beside_the_baselines(report, write):
    page = write(report)
    assert page.text("h1") == ["Captions of the dev split"]
    assert page.text("th")[:6] == [
        "Captions by", "BLEU-4", "CIDEr-D", "METEOR", "this model", "floor",
    ]  # fmt: skip
    assert page.text("td")[:6] == ["20.0", "50.1", "–", "–", "5.5", "9.0"]
    bars = [float(bar["width"]) for bar in page.all("rect")]
    assert bars == [100, 100, 0, 0, 11, 100]
    facts = list(zip(page.text("dt"), page.text("dd"), strict=True))
    assert facts == [
        ("split", "dev, 4 images"),
        ("decoding", "greedy"),
        ("different words", "1,234"),
        ("distinct captions", "62%"),
        ("copied from training, word for word", "0%"),
        ("words a caption", "9.7"),
        ("new", "2"),
    ]


def test_losses_share_a_chart_and_every_other_number_has_its_own(report, write):
    page = write(report)
    summaries = [svg["aria-label"] for svg in page.all("svg", role="img")]
    assert summaries == [
        "train loss from 5 to 3.5; dev loss from 4.5 to 4, over epochs 1 to 3",
        "dev CIDEr-D from 30.5 to 41.25, over epochs 1 to 3",
    ]
    points = [(float(dot["cx"]), float(dot["cy"])) for dot in page.all("circle")]
    assert len(points) == 3 + 2 + 2
    train, dev, cider = points[:3], points[3:5], points[5:]
    assert [x for x, _ in train[:2]] == [x for x, _ in dev]
    assert [x for x, _ in train[1:]] == [x for x, _ in cider]  # all charts over the same epochs
    assert train[0][1] < dev[0][1] < dev[1][1] == train[1][1]  # higher values are drawn higher
    assert cider[1][1] < cider[0][1]
    assert "dev CIDEr-D, epoch 3: 41.25" in page.text("title")


@pytest.mark.parametrize("history", [[], [{"epoch": 1}], [{"epoch": 1, "loss": float("inf")}]])
def test_no_numbers_no_curves(report, write, history):
    page = write(replace(report, history=history))
    assert "Training" not in page.text("h2")
    assert not page.all("figure")


def test_a_single_epoch_and_a_flat_curve_are_drawn(report, write):
    page = write(replace(report, history=[{"seconds": 7}]))
    assert len(page.all("circle")) == 1
    page = write(replace(report, history=[{"seconds": 0.0}] * 3))
    first, second, third = page.all("circle")
    assert first["cy"] == second["cy"] == third["cy"]
    assert float(first["cx"]) < float(second["cx"]) < float(third["cx"])


def test_pictures_are_small_jpegs_in_their_own_proportions(report, write, tmp_path):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for name, size, options in [
        ("wide.png", (400, 200), {}),
        ("thin.png", (3, 900), {}),
        ("sideways.jpg", (400, 200), {"exif": sideways}),
    ]:
        picture(tmp_path / name, size, **options)
    names = ["wide.png", "thin.png", "sideways.jpg"]
    images = [CaptionedImage(name, tmp_path / name, "a", ["It's wide"], 0.0) for name in names]
    page = write(replace(report, images=images))
    shapes = {}
    for card, image in zip(page.all("li", class_="card"), page.all("img"), strict=True):
        kind, _, data = image["src"].partition(",")
        with Image.open(BytesIO(base64.b64decode(data))) as picture_shown:
            picture_shown.load()
            assert (kind, picture_shown.format) == ("data:image/jpeg;base64", "JPEG")
            shapes[card["data-name"]] = picture_shown.size
        assert (int(image["width"]), int(image["height"])) == shapes[card["data-name"]]
        assert image["alt"] == "It's wide"
    assert shapes == {"wide.png": (224, 112), "thin.png": (1, 224), "sideways.jpg": (112, 224)}


def test_a_thousand_photographs_stay_below_fifteen_megabytes(report, write, tmp_path):
    # noise at several scales, about as hard to compress as a photograph
    rng = np.random.default_rng(0)
    noise = [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize((500, 500))
        for side in (7, 28, 112)
    ]
    Image.blend(Image.blend(noise[0], noise[1], 0.3), noise[2], 0.15).save(tmp_path / "one.png")
    image = replace(report.images[1], path=tmp_path / "one.png")
    empty = len(write(replace(report, images=[])).source)
    assert 4_000 < (len(write(replace(report, images=[image] * 8)).source) - empty) / 8 < 15_000


def test_missing_and_broken_pictures_get_a_placeholder(report, write):
    page = write(report)
    assert len(page.all("img")) == 2
    assert len(page.all("p", class_="placeholder")) == 2
    assert page.text("b").count("broken.jpg") == page.text("b").count("missing.jpg") == 1
    assert "(empty)" in page.text("p")


def test_attention_maps_are_packed_a_byte_a_position(report, write):
    maps = np.array([[[0.5, 0.25, 0], [0.125, 0.125, np.nan]], np.zeros((2, 3))])
    image = replace(report.images[1], words=["a", "dog"], attention=maps)
    (caption,) = write(replace(report, images=[image])).all("p", role="toolbar")
    assert (caption["data-rows"], caption["data-columns"]) == ("2", "3")
    assert list(base64.b64decode(caption["data-maps"])) == [255, 128, 0, 64, 64, 0] + [0] * 6


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 12), (4, 3, 4)])
def test_attention_that_does_not_fit_its_words_is_refused(report, tmp_path, shape):
    (tmp_path / "report.html").write_text("the old page")
    image = replace(report.images[1], attention=np.ones(shape))
    with pytest.raises(InputError, match=r"9\.jpg: attention of shape .* 3 words"):
        write_report(tmp_path / "report.html", replace(report, images=[image]))
    assert (tmp_path / "report.html").read_text() == "the old page"


def test_a_caption_without_words_has_no_maps(report, write):
    image = replace(report.images[1], caption="", words=[], attention=np.ones((0, 3, 4)))
    page = write(replace(report, images=[image]))
    assert not page.all("button")
    assert "(empty)" in page.text("p")


def test_a_place_that_cannot_be_written_is_named(report, tmp_path):
    with pytest.raises(InputError, match=str(tmp_path / "pictures")):
        write_report(tmp_path / "pictures", report)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("text", HOSTILE)
def test_words_of_others_stay_words(report, write, text):
    harmless, page = write(hostile(report, "x")), write(hostile(report, text))
    structure = [(tag, sorted(attributes)) for tag, attributes in page.elements]
    assert structure == [(tag, sorted(attributes)) for tag, attributes in harmless.elements]
    assert page.text("h1") == [text]
    assert page.text("li").count(text) == 6
    assert {card["data-name"] for card in page.all("li", class_="card")} == {text}


def test_a_file_name_that_is_not_utf8_is_shown_as_well_as_can_be(report, write):
    page = write(hostile(report, "caf\udce9.jpg"))
    assert page.text("h1") == ["caf?.jpg"]


def test_the_page_names_nothing_outside_itself(report, write):
    page = write(report)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert not re.search(r"https?://|@import|url\(", page.source)


# In a browser


@pytest.fixture
def show(browser, tmp_path):
    """Write a report and open it; what is logged from then on is the page's own."""

    def show(report, width=1200):
        write_report(tmp_path / "report.html", report)
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get((tmp_path / "report.html").as_uri())
        return browser

    return show


def run(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


def shown_names(browser):
    return run(
        browser,
        "return Array.from(document.querySelectorAll('.card:not([hidden])'), c => c.dataset.name)",
    )


def find(browser, selector):
    return browser.find_element("css selector", selector)


def requests(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def test_browser_sorts(report, show):
    browser = show(report)
    best = ["9.jpg", "missing.jpg", "10.jpg", "broken.jpg"]
    assert shown_names(browser) == best
    for order, names in [
        ("worst", best[::-1]),
        ("name", ["9.jpg", "10.jpg", "broken.jpg", "missing.jpg"]),
        ("best", best),
    ]:
        find(browser, f"input[value={order}]").click()
        assert shown_names(browser) == names


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("dog", ["9.jpg"]),  # not "hotdog"
        ("MAN", ["broken.jpg"]),  # not "woman"
        ("t shirt", ["9.jpg"]),  # of a reference, and without its mark
        ("café", ["10.jpg"]),
        ("lad walk", ["10.jpg"]),  # all the words, and their beginnings
        ("dog lady", []),
        ("9.jpg", []),
        (" , ", ["9.jpg", "missing.jpg", "10.jpg", "broken.jpg"]),
    ],
)
def test_browser_searches_captions_and_references(report, show, query, names):
    browser = show(report)
    assert find(browser, "#count").text == "4 images"
    find(browser, "#query").send_keys(query)
    assert shown_names(browser) == names
    assert find(browser, "#count").text == ("4 images" if len(names) == 4 else f"{len(names)} of 4")
    find(browser, "#query").send_keys("\ue007")  # Enter must not send the form and reload
    assert find(browser, "#query").get_property("value") == query
    find(browser, "input[value=name]").click()
    assert sorted(shown_names(browser)) == sorted(names)


def overlay(browser):
    """The opacity of the shade at the middle of each position of the 3 x 4 map, or None."""
    return run(
        browser,
        """
        const canvas = document.querySelector("canvas");
        if (!canvas) return null;
        const context = canvas.getContext("2d");
        return [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => context.getImageData(
          (column + .5) * canvas.width / 4, (row + .5) * canvas.height / 3, 1, 1).data[3]));
        """,
    )


def assert_lit(browser, position):
    shade = np.array(overlay(browser))
    assert np.unravel_index(shade.argmin(), shade.shape) == position
    assert shade.min() < 60
    assert np.median(shade) > 150


def test_browser_shows_where_the_model_looked(report, show):
    from selenium.webdriver import ActionChains, Keys

    browser = show(report)
    words = browser.find_elements("css selector", ".word")
    assert [word.text for word in words] == ["a", "dog", "runs"]
    assert overlay(browser) is None
    ActionChains(browser).move_to_element(words[1]).perform()
    assert_lit(browser, (2, 3))
    boxes = [find(browser, f".picture {kind}").rect for kind in ("img", "canvas")]
    assert boxes[0] == boxes[1]
    ActionChains(browser).move_to_element(find(browser, "h2")).perform()
    assert overlay(browser) is None

    stops = run(browser, "return Array.from(document.querySelectorAll('.word'), w => w.tabIndex)")
    assert stops == [0, -1, -1]
    run(browser, "arguments[0].focus()", words[0])
    assert_lit(browser, (0, 0))
    keys = ActionChains(browser)
    keys.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    assert browser.switch_to.active_element == words[2]
    assert_lit(browser, (1, 1))
    ActionChains(browser).send_keys(Keys.ARROW_LEFT).perform()
    assert_lit(browser, (2, 3))
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert overlay(browser) is None
    words[0].click()
    assert_lit(browser, (0, 0))
    ActionChains(browser).send_keys(Keys.TAB).perform()
    ActionChains(browser).move_to_element(find(browser, "h2")).perform()
    assert overlay(browser) is None


def test_browser_shows_no_broken_picture(report, show):
    browser = show(report)
    widths = run(browser, "return Array.from(document.images, (image) => image.naturalWidth)")
    assert widths == [224, 224]
    run(browser, "document.querySelector('.placeholder').scrollIntoView()")
    placeholder = find(browser, ".placeholder")
    assert placeholder.is_displayed()
    assert placeholder.text.splitlines()[0] == "missing.jpg"


def test_browser_runs_nothing_foreign_and_asks_for_nothing(report, show, tmp_path):
    browser = show(hostile(report, " ".join(HOSTILE)))
    for word in browser.find_elements("css selector", ".word"):
        run(browser, "arguments[0].focus()", word)
    find(browser, "#query").send_keys("hacked")
    assert find(browser, "#count").text == "3 of 3"
    assert run(browser, "return typeof window.hacked") == "undefined"
    assert {url for url in requests(browser) if not url.startswith("data:")} == {
        (tmp_path / "report.html").as_uri()
    }
    assert browser.get_log("browser") == []  # nor did the policy have to stop anything


def test_browser_policy_stops_what_would_slip_in(report, show):
    browser = show(report)
    stopped = browser.execute_async_script(
        """
        const done = arguments[0];
        const stopped = [];
        addEventListener("securitypolicyviolation", (event) => {
          stopped.push(event.effectiveDirective);
          if (stopped.length === 3) done(stopped.sort());
        });
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<style>body { display: none }</style>");
        new Image().src = "http://127.0.0.1:9/x.png";
        """
    )
    assert stopped == ["img-src", "script-src-elem", "style-src-elem"]
    assert run(browser, "return typeof window.hacked") == "undefined"


def test_browser_needs_no_sideways_scrolling_on_a_phone(report, show):
    endless = "x" * 200
    scores = {f"BLEU-{n}": 99.9 for n in range(1, 10)}
    long = replace(report.images[1], image=endless, caption=endless, words=[endless, "a", "b"])
    for images in (report.images, [long, replace(long, attention=None, references=[endless])]):
        page = replace(report, title=endless, facts={"model": endless}, images=images)
        browser = show(replace(page, rows=[*report.rows, (endless, scores)]), width=360)
        run(browser, "document.querySelectorAll('details').forEach((one) => one.open = true)")
        assert run(browser, "return document.documentElement.scrollWidth") == 360
        outside = run(
            browser,
            """
            return Array.from(document.body.querySelectorAll("*"))
              .filter((one) => !one.closest(".scroll") && one.getBoundingClientRect().right > 360)
              .map((one) => one.outerHTML.slice(0, 80));
            """,
        )
        assert outside == []


def test_browser_follows_the_reader_into_the_dark(report, show):
    browser = show(report)
    brightness = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for part in ("color", "backgroundColor"):
            colour = run(browser, f"return getComputedStyle(document.body).{part}")
            brightness[scheme, part] = sum(map(int, re.findall(r"\d+", colour))) / 3
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert brightness["light", "backgroundColor"] > 230 > 60 > brightness["light", "color"]
    assert brightness["dark", "color"] > 200 > 40 > brightness["dark", "backgroundColor"]


def test_browser_every_control_has_a_name(report, show):
    browser = show(report)
    controls = browser.find_elements("css selector", "input, button, summary, [role=toolbar], img")
    assert len(controls) >= 12
    assert all(control.accessible_name for control in controls)
    assert find(browser, "#count").aria_role == "status"
    assert find(browser, ".scores").aria_role == "table"
