"""The report as a page: what it contains, and how it behaves in a browser."""

import base64
import csv
import html
import json
import re
import time
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from captioning.captioner import Captioner
from captioning.evaluation import evaluate
from captioning.extras.study.report import build_report, write_report

HOSTILE = """
    <script>window.hacked = 1</script> </script><script>window.hacked = 1</script>
    </style></title><img src=x onerror='window.hacked = 1'> "><img src=x onerror="hacked = 1">
    ' onmouseover='window.hacked = 1 --> <!-- ]]> &lt;b&gt; {{ report }} {% raw %} \\u003c
"""
HISTORY = [
    {"epoch": 1, "train_loss": 5.0, "reward": None, "dev_loss": 4.5, "dev_CIDEr-D": 30.5},
    {"epoch": 2, "train_loss": 4.0, "reward": None, "dev_loss": 4.0, "dev_CIDEr-D": 41.25},
]
BEST = ["9.jpg", "missing.jpg", "10.jpg", "broken.jpg"]


@pytest.fixture
def report(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    Image.linear_gradient("L").resize((224, 224)).save(tmp_path / "10.png")
    Image.linear_gradient("L").resize((600, 300)).save(tmp_path / "9.png")
    attention = np.full((3, 3, 4), 0.01)
    attention[[0, 1, 2], [0, 2, 1], [0, 3, 1]] = 0.9
    references = ["A brown dog is running .", "The T-shirt"]
    columns = ("name", "path", "caption", "references", "cider_d", "attention")
    images = [
        ("10.jpg", tmp_path / "10.png", "a woman walks", ["A lady in a Café ."], 12.3, None),
        ("9.jpg", tmp_path / "9.png", "a dog runs", references, 150.0, attention),
        ("broken.jpg", tmp_path / "broken.jpg", "a man sits", ["Two men"], 0.0, None),
        ("missing.jpg", tmp_path / "missing.jpg", "", ["A hotdog"], 40.0, None),
    ]
    images = [dict(zip(columns, image, strict=True), other_caption=None) for image in images]
    images = [image | {"words": image["caption"].split()} for image in images]
    rows = {"this model": {"BLEU-4": 20.04, "CIDEr-D": 50.06}, "floor": {"CIDEr-D": 5.5}}
    diversity = {"vocabulary": 1234, "distinct": 0.625, "copied": 0.0, "length": 9.71}
    report = {"title": "Captions of dev", "facts": {"split": "dev"}, "images": images}
    return report | {"rows": rows, "diversity": diversity, "history": HISTORY}


@pytest.fixture
def compared(report):
    """The same report with the captions of another model."""
    others = [("a lady", 52.3), ('a red dog, "runs"', 100.0), ("a man", 0.0), ("cat", 20.0)]
    pairs = zip(report["images"], others, strict=True)
    images = [i | {"other_caption": text, "other_cider_d": score} for i, (text, score) in pairs]
    return report | {"images": images}


def hostile(report, text):
    """Put `text` wherever the caller's words go."""
    one = report["images"][1] | {"name": text, "caption": text, "references": [text, text]}
    one |= {"attention": np.ones((len(text.split()), 3, 4)), "other_caption": text}
    one["words"] = text.split()
    one["other_cider_d"] = 1.0
    images = [one, one | {"attention": None}, one | {"path": one["path"] / "none"}]
    rows = {text: {"CIDEr-D": 1.0, text: 2.0}}
    return report | {"title": text, "facts": {text: text}, "rows": rows, "images": images}


@pytest.fixture
def write(tmp_path):
    """A function that writes a report and returns the source of the page."""

    def write(report):
        write_report(tmp_path / "report.html", report)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def tags(source):
    """The elements of a page with the names of their attributes, as a browser reads them."""
    found, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, sorted(dict(attributes))))
    parser.feed(source)
    return [element for element in found if element[0] != "wbr"]


def test_scores_curves_and_sizes_of_pictures(report, write):
    page = write(report)
    assert re.findall(r"<td[^>]*>([\d.–]+)", page)[:4] == ["50.1", "20.0", "5.5", "–"]
    assert re.findall(r'class="bar".*?width="(.*?)"', page) == ["100.0", "100.0", "11.0"]
    assert re.findall(r"<dd>([\d.,%]+)</dd>", page) == ["1,234", "62%", "0%", "9.7"]
    assert page.count("4 pictures with") == page.count("CIDEr-D 0 to 20: 2 images") == 1
    assert page.count(" per epoch") == 3
    assert "style=" not in page.partition("</style>")[2]  # the page's policy forbids it
    assert "Training" not in write(report | {"history": []})
    shapes = []
    for data in re.findall('data:image/jpeg;base64,([^"]*)', page):
        with Image.open(BytesIO(base64.b64decode(data))) as picture:
            shapes.append(picture.size)
    assert shapes == [(448, 224), (224, 224)]  # never larger than the original
    assert page.count("missing or damaged") == 2


def test_text_of_others_stays_text(report, write):
    harmless, page = (
        write(hostile(report, re.sub(r"\S", "x", HOSTILE))),
        write(hostile(report, HOSTILE)),
    )
    assert tags(harmless) == tags(page)
    assert html.unescape(re.search("<h1>(.*?)</h1>", page, re.DOTALL)[1]) == HOSTILE
    assert "<h1>caf?.jpg</h1>" in write(hostile(report, "caf\udce9.jpg"))  # which is not UTF-8
    assert "content=\"default-src 'none'; img-src data:; " in page
    assert not re.search(r"unsafe|https?://|@import|url\((?!#)", page)


def test_a_report_is_built_of_two_evaluations(tiny_prepared, tiny_grid_checkpoint, without_meteor):
    captioner = Captioner.load(tiny_grid_checkpoint)
    one, two = (evaluate(captioner, tiny_prepared, "dev", width, 0.7) for width in (1, 2))
    report = build_report(one, {}, captioner, two)
    assert list(report["rows"])[:2] == ["this model", "other model"]
    assert [image["other_caption"] for image in report["images"]] == two.captions
    for image in report["images"]:
        maps = image["attention"]
        assert image["words"] == image["caption"].split()
        assert len(image["words"]) == (0 if maps is None else len(maps))


@pytest.fixture
def show(browser, tmp_path):
    """Write a report and open it; what is logged from then on is the page's own."""

    def show(report, width=1200):
        write_report(tmp_path / "report.html", report)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get((tmp_path / "report.html").as_uri())
        return browser

    return show


def find(browser, selector):
    return browser.find_element("css selector", selector)


def shown_names(browser):
    cards = browser.find_elements("css selector", "#gallery .card:not([hidden])")
    return [card.get_attribute("data-name") for card in cards]


def test_browser_orders_compares_and_searches(compared, show):
    browser = show(compared)
    orders = {
        "best": BEST,
        "worst": BEST[::-1],
        "name": ["9.jpg", "10.jpg", "broken.jpg", "missing.jpg"],
        "gain": ["9.jpg", "missing.jpg", "broken.jpg", "10.jpg"],
        "loss": ["10.jpg", "broken.jpg", "missing.jpg", "9.jpg"],
    }
    for order, names in orders.items():
        find(browser, f"option[value={order}]").click()
        assert shown_names(browser) == names
    lines = set(find(browser, ".card[data-name='10.jpg']").text.splitlines())
    assert {"a lady", "Other model 52.3", "difference -40.0"} <= lines
    found = {
        "dog": ["9.jpg"],  # not "hotdog"
        "t shirt": ["9.jpg"],  # of a reference, and without its mark
        "lad walk": ["10.jpg"],  # all the words, and their beginnings
        "9.jpg": [],
    }
    for query, names in found.items():
        find(browser, "#query").clear()
        find(browser, "#query").send_keys(query + "\ue007")  # Enter must not reload the page
        assert sorted(shown_names(browser)) == names
        assert find(browser, "#count").text == f"{len(names)} of 4"


def test_browser_filters_by_score_and_downloads_what_is_shown(compared, show, tmp_path):
    browser = show(compared)
    bins = browser.find_elements("css selector", ".bin:enabled")
    for button, names in zip(bins, (BEST[2:], BEST[1:], BEST), strict=True):
        button.click()  # one more bar each time
        assert shown_names(browser) == names
    bins[0].click()
    assert shown_names(browser) == BEST[:2]
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    find(browser, "#csv").click()
    for _ in range(200):
        if not (tmp_path / "captions.csv").exists():
            time.sleep(0.05)
    with (tmp_path / "captions.csv").open(newline="", encoding="utf-8-sig") as file:
        header, row, _ = csv.reader(file)
    assert header == ["image", "CIDEr-D", "caption", "other CIDEr-D", "other caption", "references"]
    references = "A brown dog is running . | The T-shirt"
    assert row == ["9.jpg", "150", "a dog runs", "100", 'a red dog, "runs"', references]


def test_browser_shows_where_the_model_looked_and_enlarges(report, show):
    from selenium.webdriver import ActionChains, Keys

    def brightest():
        """The position of the 3 x 4 map with the least shade."""
        script = """
            const canvas = document.querySelector("canvas");
            return Array.from({ length: 12 }, (_, i) => canvas.getContext("2d").getImageData(
              (i % 4 + .5) * canvas.width / 4, (i / 4 | 0) * canvas.height / 3 + 9, 1, 1).data[3]);
        """
        return divmod(int(np.argmin(browser.execute_script(script))), 4)

    browser = show(report)
    words = browser.find_elements("css selector", ".word")
    ActionChains(browser).move_to_element(words[1]).perform()
    assert brightest() == (2, 3)
    assert find(browser, ".picture img").rect == find(browser, ".picture canvas").rect
    words[0].click()
    assert brightest() == (0, 0)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    assert brightest() == (1, 1)
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not browser.find_elements("css selector", "canvas")

    small = find(browser, ".picture img").rect["width"]
    find(browser, "button.picture").click()
    assert find(browser, "dialog img").rect["width"] > 1.5 * small
    find(browser, "dialog .word").click()
    assert brightest() == (0, 0)
    find(browser, "dialog .close").click()
    assert not find(browser, "dialog").is_displayed()


def test_browser_runs_nothing_foreign_and_asks_for_nothing(report, show):
    browser = show(hostile(report, HOSTILE))
    find(browser, "button.picture").click()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert {one["request"]["url"].partition(":")[0] for one in sent} <= {"file", "data"}
    assert browser.get_log("browser") == []  # nor did the policy have to stop anything
    script = """
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<style>body { display: none }</style>");
        return [typeof window.hacked, getComputedStyle(document.body).display];
    """
    assert browser.execute_script(script) == ["undefined", "block"]


def test_browser_needs_no_sideways_scrolling_on_a_phone(compared, show):
    endless = "x" * 200
    long = compared["images"][1] | {"name": endless, "caption": f"{endless} a b"}
    images = [*compared["images"], long | {"references": [endless], "other_caption": endless}]
    report = compared | {"title": endless, "facts": {"model": endless}, "images": images}
    browser = show(report, 360)
    script = """
        for (const details of document.querySelectorAll("details")) details.open = true;
        return Array.from(document.body.querySelectorAll("*"))
          .filter((one) => !one.closest(".scroll") && one.getBoundingClientRect().right > 360)
          .map((one) => one.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(script) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_and_controls_can_be_seen(compared, show, scheme):
    def luminance(selector, part):
        colour = find(browser, selector).value_of_css_property(part)
        channels = np.array(re.findall(r"[\d.]+", colour)[:3], float) / 255
        return ((channels + 0.055) / 1.055) ** 2.4 @ (0.2126, 0.7152, 0.0722)

    browser = show(compared)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    paper = luminance("body", "background-color")
    assert (paper > 0.5) == (scheme == "light")
    parts = {"body": ("color", 10), ".other": ("color", 4.5)}
    parts |= dict.fromkeys(("#query", "#order", "#csv"), ("border-top-color", 3))
    for selector, (part, least) in parts.items():
        low, high = sorted((paper, luminance(selector, part)))
        assert (high + 0.05) / (low + 0.05) > least
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    controls = browser.find_elements("css selector", "main :is(input, select, button, summary)")
    assert all(control.accessible_name for control in controls)
