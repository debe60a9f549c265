"""The page that captions: over HTTP, and in a real browser. One server, one model, for all."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the page's packages are not installed")

from captioning.captioner import Captioner
from captioning.encoders import MAX_PIXELS
from captioning.web import app
from captioning.web.__main__ import NEEDED
from captioning.web.describe import Describer

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "<img src=x onerror='window.hacked = 1'>.png"
REQUESTS = 200
GROWTH_BYTES = 100_000_000  # that the server may need more after many requests


class Server:
    """`python -m captioning.web` in a process of its own."""

    def __init__(self, model):
        # A shell starts what it runs in the background deaf to Ctrl-C, and so its children.
        code = (
            "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "runpy.run_module('captioning.web', run_name='__main__', alter_sys=True)"
        )
        command = [sys.executable, "-c", code, "--port", "0", "--model", str(model)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": ""},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.told = self.process.stderr.readline()
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", self.told)[1])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method, path, body=None, **headers):
        """One request; headers are named with _ for -. Status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            connection.close()

    def caption(self, picture, **headers):
        """Hand in a picture; status and the JSON that came."""
        status, _, body = self.ask("POST", "/caption", picture, **headers)
        return status, json.loads(body)

    def memory(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", text)[1])


@pytest.fixture(scope="module")
def server(tiny_grid_checkpoint):
    server = Server(tiny_grid_checkpoint)
    yield server
    server.process.kill()
    server.process.communicate()


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def photograph(seed=0, kind="PNG", size=(60, 80)):
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return encoded(np.asarray(Image.fromarray(small).resize(size[::-1])), kind)


def bomb():
    """A PNG of a few kilobytes that claims more pixels than are read."""
    stream = io.BytesIO()
    Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1)).save(stream, "PNG")
    return stream.getvalue()


BAD = {
    "text": (b"<script>alert(1)</script>", "the picture: not a picture"),
    "truncated": (photograph()[:300], "the picture: damaged picture"),
    "bomb": (bomb(), "the picture: too large"),
}


# --- what a photograph gets ---------------------------------------------------------------------


def test_a_photograph_gets_its_captions_their_probabilities_and_maps(
    server, tiny_grid_checkpoint, tmp_path
):
    (tmp_path / "a.png").write_bytes(photograph())
    captioner = Captioner.load(tiny_grid_checkpoint)
    status, answer = server.caption(photograph())
    assert status == 200
    for found, width in zip(answer["captions"], (1, 5), strict=True):
        expected = captioner.describe(tmp_path / "a.png", width)
        assert found["words"] == expected.text.split()
        assert found["probability"] == pytest.approx(np.exp(expected.log_probability), rel=1e-2)
        maps = np.array(found["maps"])
        assert maps.shape == (len(found["words"]), 2, 2)
        assert (maps.max((1, 2)) == 255).all()
    assert "Greedy" in answer["captions"][0]["search"]
    assert "Beam" in answer["captions"][1]["search"]


def test_a_model_without_attention_gives_no_maps(tiny_checkpoint):
    answer = Describer(Captioner.load(tiny_checkpoint))(photograph())
    assert all("maps" not in caption for caption in answer["captions"])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_what_pillow_reads_is_captioned(server, kind):
    assert server.caption(photograph(kind=kind))[0] == 200


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_told_in_a_line(server, kind):
    content, told = BAD[kind]
    status, answer = server.caption(content)
    assert status == 422
    assert answer["error"].startswith(told)
    assert "\n" not in answer["error"]
    assert "Traceback" not in answer["error"]


def test_an_empty_body_is_refused(server):
    assert server.caption(b"")[0] == 400


def test_what_is_too_large_is_refused_whether_it_says_so_or_not(server):
    before = server.memory()
    large = bytes(app.MAX_BYTES + 1)
    assert server.caption(large)[0] == 413
    chunks = (bytes(1_000_000) for _ in range(60))  # sent without a length
    assert server.caption(chunks)[0] == 413
    assert server.memory() - before < GROWTH_BYTES
    assert server.caption(photograph())[0] == 200


def test_other_methods_and_addresses_are_refused(server):
    for method, path in [("GET", "/caption"), ("PUT", "/caption"), ("POST", "/"), ("DELETE", "/")]:
        assert server.ask(method, path)[0] == 405
    for path in ("/nothing", "/page.html", "/../app.py", "/%2e%2e/app.py", "/page.js/x"):
        assert server.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[evil]", ""]
)
def test_a_name_that_is_not_ours_is_refused(server, host):
    for method, path in (("GET", "/"), ("POST", "/caption")):
        assert server.ask(method, path, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "192.168.0.7"])
def test_this_machine_is_known_by_name_and_by_numbers(server, host):
    assert server.ask("GET", "/", Host=f"{host}:{server.port}")[0] == 200
    assert server.ask("GET", "/", Host=host)[0] == 200


def test_what_another_page_sends_is_refused(server):
    own = server.url.rstrip("/")
    picture = photograph()
    for origin in ("https://evil.example", "null", own + "0", own.replace("http", "https")):
        assert server.caption(picture, Origin=origin)[0] == 403
    for site in ("cross-site", "same-site"):
        assert server.caption(picture, Sec_Fetch_Site=site)[0] == 403
    assert server.caption(picture, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    status, headers, _ = server.ask("OPTIONS", "/caption", Origin="https://evil.example")
    assert status in (403, 405)
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_every_answer_carries_the_policy(server):
    for method, path, host in [
        ("GET", "/", "localhost"),
        ("GET", "/page.js", "localhost"),
        ("GET", "/nothing", "localhost"),
        ("POST", "/caption", "localhost"),
        ("GET", "/", "evil.example"),
    ]:
        _, headers, _ = server.ask(method, path, Host=host)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_the_page_names_nothing_outside_itself(server):
    for path in ("/", "/page.css", "/page.js"):
        text = server.ask("GET", path)[2].decode()
        assert not re.search(r"https?://|@import|url\(|%%", text), path
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path


# --- many at once -------------------------------------------------------------------------------


def test_two_hundred_at_once_are_all_answered_and_memory_stays_flat(server):
    good = [photograph(seed, "JPEG", (240, 320)) for seed in range(5)]
    bad = [content for content, _ in BAD.values()]
    alone = [server.caption(picture)[1] for picture in good]
    for content in bad:
        server.caption(content)

    def patiently(number):
        """As the page does: come again when there are too many."""
        picture = bad[number // 5 % 3] if number % 5 == 4 else good[number % 5]
        for _ in range(300):
            status, headers, body = server.ask("POST", "/caption", picture)
            if status != 503:
                return number, status, json.loads(body)
            time.sleep(int(headers["Retry-After"]))
        raise AssertionError("sent away for ever")

    with ThreadPoolExecutor(REQUESTS) as crowd:
        list(crowd.map(patiently, range(REQUESTS)))  # arenas of the allocator fill up once
        before = server.memory()
        answers = list(crowd.map(patiently, range(REQUESTS)))
    for number, status, answer in answers:
        if number % 5 == 4:
            assert status == 422
        else:
            assert status == 200
            words = [caption["words"] for caption in answer["captions"]]
            assert words == [caption["words"] for caption in alone[number % 5]["captions"]]
    assert server.memory() - before < GROWTH_BYTES


def test_those_beyond_the_line_are_sent_away_for_a_moment():
    import uvicorn

    opened, sent_away = threading.Event(), []

    def describe(picture):
        opened.wait(60)
        return {"captions": [len(picture)]}

    settings = uvicorn.Config(app.make_app(describe), lifespan="off", log_level="warning")
    service = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0), backlog=REQUESTS) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=service.run, args=([listener],))
        thread.start()

        def hand_in(size):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/caption", bytes(size))
            reply = connection.getresponse()
            answer = reply.status, reply.headers["Retry-After"], json.loads(reply.read())
            connection.close()
            if answer[0] == 503:
                sent_away.append(size)
                if len(sent_away) == 5:
                    opened.set()  # all the others are in the line
            return answer

        room = app.MAX_WAITING + app.READ_AT_ONCE
        with ThreadPoolExecutor(room + 5) as crowd:
            answers = list(crowd.map(hand_in, range(1000, 1000 + room + 5)))
        assert hand_in(7) == (200, None, {"captions": [7]})
        service.should_exit = True
        thread.join()
    statuses = [status for status, _, _ in answers]
    assert statuses.count(503) == 5
    assert statuses.count(200) == room
    assert {wait for status, wait, _ in answers if status == 503} == {str(app.RETRY_SECONDS)}


def test_those_who_break_off_or_dawdle_keep_nobody_waiting(server):
    head = f"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1000}\r\n\r\n".encode()
    for _ in range(3 * app.READ_AT_ONCE):
        with socket.create_connection(("127.0.0.1", server.port)) as broken:
            broken.sendall(head + b"half")
    dawdlers = [
        socket.create_connection(("127.0.0.1", server.port)) for _ in range(app.READ_AT_ONCE - 1)
    ]
    for dawdler in dawdlers:
        dawdler.sendall(head)
    started = time.monotonic()
    assert server.caption(photograph())[0] == 200
    assert time.monotonic() - started < app.BODY_SECONDS / 2
    for dawdler in dawdlers:
        dawdler.close()


def test_nothing_is_written(server):
    files = Path(f"/proc/{server.process.pid}/fd")
    opened = {str(path.readlink()) for path in files.iterdir()}
    server.caption(photograph(size=(1500, 1500)))
    later = {str(path.readlink()) for path in files.iterdir()}
    assert not {path for path in later - opened if path.startswith("/")}


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def page(browser, server):
    """The page, newly opened; what is logged from then on is its own."""
    size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(server.url)
    return browser


def find(browser, selector):
    return browser.find_element("css selector", selector)


def run(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


def wait(browser, text):
    """Wait until the status line says `text`."""
    deadline = time.monotonic() + 60
    while text not in find(browser, "#status").text:
        assert time.monotonic() < deadline, find(browser, "#status").text
        time.sleep(0.05)


def choose(browser, tmp_path, name="holiday.png", content=None):
    (tmp_path / name).write_bytes(content or photograph())
    find(browser, "#file").send_keys(str(tmp_path / name))


def overlay(browser):
    """The opacity of the shade in the middle of each of the 2 x 2 positions, or None."""
    return run(
        browser,
        """
        const canvas = document.querySelector("#picture canvas");
        if (!canvas) return null;
        const context = canvas.getContext("2d");
        return [0, 1].map((row) => [0, 1].map((column) => context.getImageData(
          (column + .5) * canvas.width / 2, (row + .5) * canvas.height / 2, 1, 1).data[3]));
        """,
    )


def hand_over(browser, kind, name="dropped.png"):
    """Drop or paste a photograph on the page."""
    event = {
        "drop": "new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})",
        "paste": "new ClipboardEvent('paste', {clipboardData: data, bubbles: true})",
    }[kind]
    run(
        browser,
        f"""
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(arguments[0])], arguments[1]));
        document.body.dispatchEvent({event});
        """,
        list(photograph()),
        name,
    )


def test_browser_captions_a_file_and_shows_where_the_model_looked(page, server, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    choose(page, tmp_path)
    wait(page, "holiday.png: done")
    expected = server.caption(photograph())[1]["captions"]
    lines = page.find_elements("css selector", ".caption")
    for line, caption in zip(lines, expected, strict=True):
        words = line.find_elements("css selector", ".word")
        assert [word.text for word in words] == caption["words"]
        assert re.search(r"\d %$", line.text)
    words = lines[1].find_elements("css selector", ".word")
    assert len(words) > 1
    assert overlay(page) is None

    ActionChains(page).move_to_element(words[0]).perform()
    shade = np.array(overlay(page))
    lit = np.array(expected[1]["maps"][0])
    assert np.unravel_index(shade.argmin(), (2, 2)) == np.unravel_index(lit.argmax(), (2, 2))
    assert find(page, "#picture img").rect == find(page, "#picture canvas").rect
    ActionChains(page).move_to_element(find(page, "h1")).perform()
    assert overlay(page) is None

    run(page, "arguments[0].focus()", words[0])
    assert overlay(page) is not None
    ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    assert page.switch_to.active_element == words[1]
    assert words[1].get_attribute("class") == "word shown"
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert overlay(page) is None
    words[0].click()
    assert overlay(page) is not None


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_browser_takes_what_is_dropped_or_pasted(page, kind):
    hand_over(page, kind)
    wait(page, "dropped.png: done")
    assert len(page.find_elements("css selector", ".caption")) == 2
    assert run(page, "return document.getElementById('shown').naturalWidth") == 80


def test_browser_takes_a_picture_with_the_camera(page):
    find(page, "#camera").click()
    deadline = time.monotonic() + 30
    while not find(page, "#take").is_displayed():
        assert time.monotonic() < deadline, find(page, "#status").text
        time.sleep(0.05)
    assert run(page, "return document.getElementById('video').videoWidth") > 0
    find(page, "#take").click()
    wait(page, "The photograph: done")
    assert not find(page, "#live").is_displayed()
    assert run(page, "return document.getElementById('video').srcObject") is None


def test_browser_tells_what_is_no_picture_and_what_is_too_large(page, tmp_path):
    choose(page, tmp_path, "notes.png", b"no picture")
    wait(page, "the picture: not a picture in a format that Pillow reads")
    assert not find(page, "#result").is_displayed()
    choose(page, tmp_path, "huge.png", bytes(app.MAX_BYTES + 1))
    wait(page, "huge.png is too large: at most 20 MB")
    choose(page, tmp_path)
    wait(page, "holiday.png: done")


def test_browser_waits_its_turn_when_many_are_there(page, tmp_path):
    run(
        page,
        """
        const real = window.fetch;
        window.tried = 0;
        window.fetch = (...request) => window.tried++ < 2
          ? Promise.resolve(new Response("{}", {status: 503, headers: {"Retry-After": "0.1"}}))
          : real(...request);
        """,
    )
    choose(page, tmp_path)
    wait(page, "holiday.png: done")
    assert run(page, "return window.tried") == 3


def test_browser_shows_names_as_text_and_asks_for_nothing_elsewhere(page, server):
    hand_over(page, "drop", HOSTILE)
    wait(page, f"{HOSTILE}: done")
    assert run(page, "return typeof window.hacked") == "undefined"
    assert find(page, "#shown").get_attribute("alt") == HOSTILE
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    outside = {url for url in asked if not url.startswith((server.url, "blob:", "data:"))}
    assert not outside
    assert page.get_log("browser") == []  # nor did the policy have to stop anything


def test_browser_needs_no_sideways_scrolling_on_a_phone(page):
    size = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    hand_over(page, "drop", "x" * 200 + ".png")
    wait(page, "done")
    assert run(page, "return document.documentElement.scrollWidth") == 360
    picture, caption = find(page, "#picture"), find(page, ".caption")
    assert picture.rect["y"] + picture.rect["height"] <= caption.rect["y"]


def contrast(browser, element):
    """The contrast of an element's text as WCAG 2 computes it."""
    colours = run(
        browser,
        """
        let behind = arguments[0];
        const clear = "rgba(0, 0, 0, 0)";
        while (getComputedStyle(behind).backgroundColor === clear) behind = behind.parentElement;
        return [getComputedStyle(arguments[0]).color, getComputedStyle(behind).backgroundColor];
        """,
        element,
    )
    light = []
    for colour in colours:
        parts = np.array(re.findall(r"\d+", colour)[:3], float) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        light.append(linear @ (0.2126, 0.7152, 0.0722))
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_can_be_read_by_day_and_by_night(page, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    hand_over(page, "drop")
    wait(page, "done")
    for selector in ("h1", "h2", ".note", "#status", ".word", ".probability", "#choose", "#camera"):
        assert contrast(page, find(page, selector)) >= 4.5, selector
    run(page, "document.querySelector('.word').focus()")
    assert contrast(page, find(page, ".word.shown")) >= 4.5
    run(page, "document.getElementById('status').className = 'bad'")
    assert contrast(page, find(page, "#status")) >= 4.5
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_browser_every_control_has_a_name_and_is_reached_by_keys(page):
    from selenium.webdriver import ActionChains, Keys

    hand_over(page, "drop")
    wait(page, "done")
    controls = page.find_elements("css selector", "button, input, img, video, [role=toolbar]")
    shown = [control for control in controls if control.is_displayed()]
    assert len(shown) > 6
    assert all(control.accessible_name for control in shown)
    assert find(page, "#status").aria_role == "status"
    said = run(page, "return document.getElementById('status').textContent")
    assert "Greedy search: " in said
    assert "Beam search" in said
    run(page, "document.activeElement.blur()")
    reached = []
    for _ in range(4):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element)
    assert [one.get_attribute("id") for one in reached[:2]] == ["choose", "camera"]
    assert [one.get_attribute("class").split()[0] for one in reached[2:]] == ["word"] * 2


# --- from start to end --------------------------------------------------------------------------


def call(*arguments):
    command = [sys.executable, "-m", "captioning.web", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_port_that_is_taken_is_told_in_a_line(server):
    done = call("--port", server.port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "choose another --port" in done.stderr


def test_a_host_that_is_not_here_and_a_model_that_is_none_are_told(tmp_path):
    done = call("--host", "192.0.2.1", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    (tmp_path / "model.keras").write_bytes(b"none")
    done = call("--host", "0.0.0.0", "--port", "0", "--model", tmp_path / "model.keras")
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: everybody who reaches 0.0.0.0")
    assert error.startswith("error: ")


def test_without_its_packages_the_page_says_how_to_get_them():
    code = (
        "import sys, runpy; sys.modules['uvicorn'] = None; sys.argv = ['web']; "
        "runpy.run_module('captioning.web', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install starlette uvicorn" in done.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["web"]
    assert [re.match(r"\w+", line)[0] for line in extra] == list(NEEDED)


def test_ctrl_c_ends_it_within_two_seconds_busy_or_not(server):
    busy = threading.Thread(target=lambda: [_try(server) for _ in range(20)], daemon=True)
    busy.start()
    with socket.create_connection(("127.0.0.1", server.port)):
        time.sleep(0.2)
        started = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=30)
        assert time.monotonic() - started < 2
    assert server.process.returncode == 130
    err = server.process.stderr.read()
    assert "Traceback" not in err
    assert "start again with\npython -m captioning.web --port 0" in err


def _try(server):
    with pytest.raises((OSError, http.client.HTTPException)):
        while True:
            server.caption(photograph())
