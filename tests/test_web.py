"""The web page, over HTTP and in headless Chromium, with a captioner that needs no model."""

import contextlib
import csv
import dataclasses
import http.client
import io
import json
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys

from captioning.captions import Caption
from captioning.errors import InputError
from captioning.extras.serve import web
from captioning.images import MAX_PIXELS

HALF = b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf"


class FakeCaptioner:
    """Says whether a picture is dark or bright; of bright ones it has alternatives."""

    image_size = 8

    def __init__(self, has_attention=True):
        self.has_attention, self.busy = has_attention, threading.Lock()

    def encode(self, pixels):
        assert self.busy.acquire(blocking=False)  # one image at a time
        return np.array([picture.mean() for picture in pixels])

    def caption_features(self, features, n_best):
        time.sleep(0.005)
        self.busy.release()
        words = ("a", "dark", "picture")
        if features[0] > 127:
            words = ("a", "bright", "warm", "picture")
        probabilities = (0.9, 0.5, 0.25, 0.1, 0.5)
        others = [(*words[:2], f"choice{n}") for n in range(1, n_best)] if len(words) > 3 else []
        found = [Caption(" ".join(w), w, probabilities[: len(w) + 1]) for w in (words, *others)]
        naming = {"name": "", "recognised": {"lamp": 0.512}, "guess": len(words) > 3}
        return [dataclasses.replace(found[0], alternatives=tuple(found[1:]), naming=naming)]

    def attention(self, features, captions):
        maps = np.full((len(captions[0].split()), 2, 2), 0.1)
        maps[0, 0, 1] = maps[1, 1, 0] = 0.7
        return [maps]


@dataclass
class Client:
    """Sends requests to a port of this computer."""

    port: int

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"Connection": "close", **headers})
        with connection.getresponse() as reply:
            return reply.status, reply.headers, reply.read()

    def caption(self, picture, **headers):
        """Status and answer: JSON if it is 200, otherwise a line of text."""
        status, _, body = self.ask("POST", "/caption", picture, **headers)
        return status, json.loads(body) if status == 200 else body.decode()

    def connect(self, count, data=b""):
        """Connections on which `data` has been sent; they close as the stack unwinds."""
        stack = contextlib.ExitStack()
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", self.port))).sendall(data)
        return stack


@contextlib.contextmanager
def serving(captioner):
    server = web.make_server(captioner, "fake.safetensors")
    with web.listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield Client(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server():
    with serving(FakeCaptioner()) as client:
        yield client


def photograph(level=200, kind="PNG", size=(80, 60), mode="L"):
    stream = io.BytesIO()
    Image.new(mode, size, level).save(stream, kind)
    return stream.getvalue()


# --- over HTTP ----------------------------------------------------------------------------------


def test_an_image_is_captioned_with_probabilities_and_maps(server):
    _, best = server.caption(photograph())
    assert best["words"] == best["caption"].split() == ["a", "bright", "warm", "picture"]
    assert best["probabilities"] == [0.9, 0.5, 0.25, 0.1, 0.5]
    assert round(best["confidence"], 4) == 0.3548  # (0.9 * 0.5 * 0.25 * 0.1 * 0.5) ** (1 / 5)
    assert best["maps"][0] == [[36, 255], [36, 36]]
    others = [f"a bright choice{n}" for n in (1, 2, 3, 4)]
    assert [other["caption"] for other in best["alternatives"]] == others
    assert server.caption(photograph(0))[1]["alternatives"] == []
    answer = web.describe(FakeCaptioner(has_attention=False), io.BytesIO(photograph()))
    assert all("maps" not in caption for caption in (answer, *answer["alternatives"]))


def test_a_bad_picture_is_rejected_in_one_line(server):
    many_pixels = photograph(size=(20_000, MAX_PIXELS // 20_000 + 1), mode="1")
    cases = {b"": "not a picture", b"<script>alert(1)</script>": "not a picture"}
    cases |= {photograph(size=(500, 500))[:100]: "damaged picture", many_pixels: "too large"}
    for content, expected in cases.items():
        status, reason = server.caption(content)
        assert (status, reason.count("\n")) == (422, 0)
        assert reason.startswith(expected)


def test_large_slow_and_broken_uploads_do_not_block_others(server, monkeypatch):
    assert server.caption(iter([bytes(web.MAX_BYTES), b"x"]))[0] == 413  # sent without a length
    server.connect(2 * web.READ_AT_ONCE, HALF).close()
    monkeypatch.setattr(web, "BODY_SECONDS", 0.2)
    with server.connect(web.READ_AT_ONCE, HALF):
        assert server.caption(photograph())[0] == 200


def test_a_hundred_at_once_are_captioned_one_after_another(server):
    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(lambda _: server.caption(photograph())[0], range(100))) == {200}


def test_connections_are_limited(monkeypatch):
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 4)
    with serving(FakeCaptioner()) as client, client.connect(4):
        assert client.caption(photograph())[0] == 503


def test_only_the_page_and_the_examples_are_served(server):
    assert b"fake.safetensors" in server.ask("GET", "/")[2]
    assert server.ask("GET", "/examples/cat.jpg")[1]["Content-Type"] == "image/jpeg"
    for path in ("/__init__.py", "/page.html", "/examples/captioned.jpg", "/examples/../page.html"):
        assert server.ask("GET", path)[0] == 404


def test_every_answer_has_the_security_headers_and_nothing_is_inline(server):
    for path, host in (("/", "localhost"), ("/nothing", "localhost"), ("/", "evil.example")):
        headers = server.ask("GET", path, Host=host)[1]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
    for path in ("/", "/page.css", "/page.js"):
        text = server.ask("GET", path)[2].decode()
        assert not re.search(r"https?://|@import|url\(|%%|<style| style=|innerHTML", text), path


def test_foreign_hosts_and_pages_are_rejected(server):
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[evil]"):
        assert server.ask("GET", "/", Host=host)[0] == 421
        assert server.caption(photograph(), Host=host)[0] == 421
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "192.168.0.7"):
        assert server.ask("GET", "/", Host=host)[0] == 200
    own = f"http://127.0.0.1:{server.port}"
    for origin in ("https://evil.example", "null", own + "0", own.replace("http", "https")):
        assert server.caption(photograph(), Origin=origin)[0] == 403
    assert server.caption(photograph(), Origin=own)[0] == 200


def test_nothing_is_written_to_disk(server):
    written, watching = [], True

    def watch(event, arguments):
        if watching and event == "open" and arguments[2] & 3:  # not read-only
            written.append(arguments[0])

    sys.addaudithook(watch)
    assert server.caption(photograph(kind="BMP", size=(3000, 3000)))[0] == 200  # 9 MB
    watching = False
    assert not written


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def page(browser, server, tmp_path):
    """The page, newly opened; downloads go to `tmp_path`."""
    resize(browser, 1280)
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    browser.get_log("browser")
    browser.get(f"http://127.0.0.1:{server.port}/")
    return browser


def resize(browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def texts(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())"
    return browser.execute_script(script, selector)


def wait(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for(browser, status):
    wait(lambda: status in find(browser, "#status").text)


def choose(browser, folder, **contents):
    """Choose files, all at once: name without its suffix -> content."""
    for name, content in contents.items():
        (folder / f"{name}.png").write_bytes(content)
    find(browser, "#file").send_keys("\n".join(f"{folder}/{name}.png" for name in contents))


def hand_over(browser, kind, *names, size=(80, 60)):
    """Drop or paste photographs on the page."""
    script = """
        const [kind, names, bytes] = arguments, data = new DataTransfer();
        for (const name of names) data.items.add(new File([new Uint8Array(bytes)], name));
        const event = new Event(kind, { bubbles: true, cancelable: true });
        event.dataTransfer = event.clipboardData = data;
        document.body.dispatchEvent(event);
    """
    browser.execute_script(script, kind, names, list(photograph(size=size)))


def test_browser_several_files_become_cards_that_stay(page, tmp_path):
    choose(page, tmp_path, first=photograph(), bad=b"no picture", third=photograph(0))
    wait_for(page, "Done: 2 captioned, 1 failed")
    assert texts(page, ".name") == ["first.png", "bad.png", "third.png"]
    captions = ["a bright warm picture", "a dark picture"]
    assert texts(page, ".captions > .caption") == captions
    assert texts(page, ".captions > .facts") == ["Confidence 35 %", "Confidence 33 %"]
    other = find(page, "details .caption")
    assert not other.is_displayed()
    find(page, "summary").click()
    assert other.text == "a bright choice1"
    assert texts(page, "details .facts")[0] == "Alternative: confidence 33 %"
    seen, (first, guess, last) = "Recognised: lamp 51 %.", texts(page, "p.note:not(.facts)")[-3:]
    assert first == last == seen and guess.startswith("Unlike what the captioner has seen")
    assert texts(page, ".error") == ["not a picture in a format that Pillow reads"]
    choose(page, tmp_path, huge=bytes(web.MAX_BYTES + 1))
    wait_for(page, "Done: 2 captioned, 2 failed")
    assert texts(page, ".name") == ["huge.png", "first.png", "bad.png", "third.png"]
    assert texts(page, ".error")[0] == "larger than 20 MB; scale it down"


def test_browser_words_show_their_probability_and_where_the_model_looked(page, tmp_path):
    def overlay():
        """The opacity of the shade in each quarter of the picture, or None."""
        script = """
            const canvas = document.querySelector(".frame canvas");
            const at = (x, y) => [x * canvas.width / 4, y * canvas.height / 4, 1, 1];
            return canvas && [at(1, 1), at(3, 1), at(1, 3), at(3, 3)].map((place) =>
              canvas.getContext("2d").getImageData(...place).data[3]);
        """
        return page.execute_script(script)

    choose(page, tmp_path, large=photograph(size=(3000, 2000)))
    wait_for(page, "Done")
    words = page.find_elements("css selector", ".caption:first-child .word")
    assert len({word.value_of_css_property("background-color") for word in words}) == 4
    ActionChains(page).move_to_element(words[0]).perform()
    assert np.argmin(overlay()) == 1
    assert texts(page, ".facts")[0] == "a, 90 %"
    assert find(page, ".frame img").rect == find(page, ".frame canvas").rect
    ActionChains(page).move_to_element(find(page, "h1")).perform()
    assert overlay() is None
    assert texts(page, ".facts")[0] == "Confidence 35 %"
    page.execute_script("arguments[0].focus()", words[0])
    ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    assert page.switch_to.active_element == words[1]
    assert np.argmin(overlay()) == 2
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert overlay() is None
    words[0].click()
    assert overlay() is not None


def test_browser_copies_and_downloads(page, tmp_path):
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    choose(page, tmp_path, **{'a "b", ü': photograph(), "bad": b"no picture"})
    wait_for(page, "Done")
    find(page, ".copy").click()
    wait(lambda: find(page, ".copy").text == "Copied")
    copied = page.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == "a bright warm picture"
    find(page, "#csv").click()
    find(page, "#json").click()
    wait(lambda: len(list(tmp_path.glob("captions.*[nv]"))) == 2)
    first, second = csv.DictReader((tmp_path / "captions.csv").read_text("utf-8").splitlines())
    assert (first["image"], first["caption"]) == ('a "b", ü.png', copied)
    assert first["confidence"].startswith("0.3548")
    good, bad = json.loads((tmp_path / "captions.json").read_text("utf-8"))
    assert good["probabilities"] == [0.9, 0.5, 0.25, 0.1, 0.5]
    assert "maps" not in good
    assert bad == {"image": "bad.png", "error": second["error"]}


def test_browser_takes_drops_pastes_examples_and_the_camera(page):
    hand_over(page, "paste")
    wait_for(page, "The clipboard has no picture")
    hand_over(page, "drop")
    wait_for(page, "not a file")
    hand_over(page, "drop", "one.png", "two.png")
    hand_over(page, "paste", "pasted.png")
    wait_for(page, "Done: 3 captioned")
    find(page, "#examples button:nth-child(2)").click()
    wait_for(page, "Done: 4 captioned")
    find(page, "#camera").click()
    wait(lambda: find(page, "#take").is_displayed())
    find(page, "#take").click()
    wait_for(page, "Done: 5 captioned")
    assert page.execute_script("return document.getElementById('video').srcObject") is None
    page.execute_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    hand_over(page, "drop", "late.png")
    wait_for(page, "Done: 5 captioned, 1 failed")
    assert texts(page, ".error") == ["no answer from the captioner; is it still running?"]
    names = "late.png camera.jpg cat.jpg pasted.png one.png two.png"
    assert texts(page, ".name") == names.split()


def contrast(browser, selector):
    """The contrast of text and background as in WCAG 2."""
    script = """
        const style = getComputedStyle, element = document.querySelector(arguments[0]);
        let behind = element;
        while (style(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [style(element).color, style(behind).backgroundColor];
    """
    light = []
    for colour in browser.execute_script(script, selector):
        parts = np.array(re.findall(r"\d+", colour)[:3], float) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        light.append(linear @ (0.2126, 0.7152, 0.0722))
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 390)])
def test_browser_on_a_phone_by_day_and_by_night(page, tmp_path, scheme, width):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    resize(page, width)
    hostile = "<img src=x onerror=alert(1)>" + "x" * 200
    hand_over(page, "drop", hostile, size=(2000, 300))
    wait_for(page, "Done")
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    assert texts(page, ".name") == [hostile]
    assert page.get_log("browser") == []  # the policy had nothing to block
    choose(page, tmp_path, bad=b"no picture")
    wait_for(page, "1 failed")
    words = "document.querySelectorAll('.word')"
    page.execute_script(
        f"{words}[0].focus(); {words}[1].style.background = 'var(--shade)'"
    )  # the strongest
    for selector in ("h1", ".note", "#status", "#choose", "#camera", ".copy", ".error"):
        assert contrast(page, selector) >= 4.5, selector
    assert min(contrast(page, ".word.shown"), contrast(page, ".word:nth-child(2)")) >= 4.5
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_browser_every_control_has_a_name_and_is_reached_by_keys(page):
    hand_over(page, "drop", "photo.png")
    wait_for(page, "Done")
    controls = page.find_elements("css selector", "button, input, img, [role=toolbar]")
    assert all(control.accessible_name for control in controls if control.is_displayed())
    page.execute_script("document.activeElement.blur()")
    reached = []
    while "Copy" not in reached:
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element.accessible_name)
    others = "; ".join(name for name in reached if not name.endswith(".jpg"))
    buttons = "Choose files; Use the camera; Download CSV; Download JSON"
    assert others == f"{buttons}; a, 90 %; Alternatives; Copy"  # one tab stop per caption


# --- the command --------------------------------------------------------------------------------


def test_a_port_that_is_in_use_is_reported(server):
    with pytest.raises(InputError, match=rf"port {server.port} \(.*another --port or --host"):
        web.listen("127.0.0.1", server.port)


def test_the_command_serves_a_checkpoint_until_ctrl_c(process, tiny_grid_checkpoint):
    running = process("captioning/__main__.py", "web", "--port=0", "--model", tiny_grid_checkpoint)
    line = next(line for line in running.stderr if line.startswith("Open http://127.0.0.1:"))
    _, answer = Client(int(re.findall(r"\d+", line)[-1])).caption(photograph())
    for caption in (answer, *answer["alternatives"]):
        maps = np.reshape(caption["maps"], (-1, 2, 2))  # an alternative may have no words
        assert len(maps) == len(caption["words"])
    running.send_signal(signal.SIGINT)
    assert "Traceback" not in running.communicate(timeout=30)[1]
    assert running.returncode == 130
