"""Downloads from a server on this machine that has one fault after another."""

import http.server
import io
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from captioning.datasets import read_dataset
from captioning.errors import ArgumentParser, InputError
from captioning.extras.scale import download
from captioning.extras.scale.download import download_flickr8k, fetch

ROOT = Path(__file__).parents[1]
TEXT_FILES = {
    "Flickr8k.token.txt": "".join(f"{i}.jpg#{n}\tA dog {n} .\n" for i in "abc" for n in range(5)),
    "Flickr_8k.trainImages.txt": "a.jpg\n",
    "Flickr_8k.devImages.txt": "b.jpg\n",
    "Flickr_8k.testImages.txt": "c.jpg\n",
    "__MACOSX/._readme.txt": "",
}


def noise(size):
    return random.Random(size).randbytes(size)


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members.items():
            archive.writestr(*member)
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; each of the `faults` befalls one request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        images = {f"Flicker8k_Dataset/{image}.jpg": noise(200_000) for image in "abc"}
        self.files = {
            "/Flickr8k_Dataset.zip": zipped({**images, "__MACOSX/._a.jpg": "x"}),
            "/Flickr8k_text.zip": zipped(TEXT_FILES),
            "/big": noise(1_000_000),
        }
        self.faults = []
        self.ignores_range = False
        self.redirects = {}
        self.requests = []  # (path, Range header)
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers["Range"]))
        fault = server.faults.pop(0) if server.faults else None
        self.close_connection = True
        if target := server.redirects.get(self.path):
            return self.answer(302, {"Location": target, "Content-Length": "0"}, b"")
        if isinstance(fault, int) or self.path not in server.files:
            return self.send_error(fault or 404)
        content = server.files[self.path]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(wanted[1]) if wanted and not server.ignores_range else 0
        if start and start >= len(content):
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        first, body = start + (fault == "shift"), content[start:]
        headers = {"Content-Length": str(len(body))} if fault != "no length" else {}
        headers |= {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        sent = body[: len(body) // 2] if fault in ("cut", "stall") else body
        self.answer(206 if start else 200, headers, sent)
        return time.sleep(30 if fault == "stall" else 0)

    def answer(self, status, headers, body):
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def local_and_quick(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)


def command(*arguments):
    parser = ArgumentParser()
    download.add_arguments(parser)
    return download.main(parser.parse_args([str(argument) for argument in arguments]))


def test_the_command_brings_a_readable_data_set_once(server, tmp_path, capsys):
    target = tmp_path / "data" / "flickr8k"
    target.mkdir(parents=True)
    (tmp_path / "link").symlink_to(target)  # to another disk
    command("--to", tmp_path / "link", "--from", server.url)
    out, err = capsys.readouterr()
    assert "train 1, dev 1, test 1" in out
    assert "Flickr8k_Dataset.zip" in err  # the progress bar
    assert read_dataset(target).layout == "official"
    assert (target / "Flicker8k_Dataset" / "a.jpg").read_bytes() == noise(200_000)
    assert not list(tmp_path.rglob("__MACOSX"))
    assert list(target.parent.iterdir()) == [target]

    server.requests.clear()
    command("--to", target, "--from", server.url)
    out, err = capsys.readouterr()
    assert "train 1, dev 1, test 1" in out
    assert "nothing is downloaded" in err
    assert server.requests == []


def test_a_target_that_holds_or_is_something_else_is_left_alone(server, tmp_path):
    (tmp_path / "new.part").mkdir()
    for mine in ("mine.txt", "new.part/mine.zip"):
        (tmp_path / mine).write_text("mine")
    with pytest.raises(InputError):
        command("--to", tmp_path / "new", "--from", f"{server.url}/elsewhere")
    assert (tmp_path / "new.part" / "mine.zip").read_text() == "mine"
    shutil.rmtree(tmp_path / "new.part")
    server.requests.clear()
    for target, said in ((tmp_path, "no data set"), (tmp_path / "mine.txt" / "x", "be written")):
        with pytest.raises(InputError, match=said):
            command("--to", target, "--from", server.url)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.txt"]
    assert server.requests == []


def test_no_network_is_reported_in_one_line(server, tmp_path):
    server.server_close()  # nothing listens at this port any more
    with pytest.raises(InputError) as caught:
        command("--to", tmp_path / "flickr8k", "--from", server.url)
    message = str(caught.value)
    assert message.startswith(f"{server.url}Flickr8k_text.zip: cannot be downloaded (Connection")
    assert message.endswith("unpack Flickr8k_text.zip from elsewhere into the folder")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "source", ["http://example.org/", "ftp://example.org/", "file:///data/", "nonsense"]
)
def test_only_https_is_accepted_beyond_this_machine(server, source, tmp_path):
    server.redirects["/Flickr8k_text.zip"] = f"{source}Flickr8k_text.zip"
    places = [source] if source == "nonsense" else [source, server.url]
    for place in places:
        with pytest.raises(InputError, match="expected an address with https://"):
            download_flickr8k(tmp_path / "x", place)
    assert len(server.requests) == len(places) - 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=lambda ending: ending.name)
def test_a_killed_download_resumes(server, tmp_path, ending):
    server.faults = [None, "stall"]
    target = tmp_path / "flickr8k"
    arguments = ["--to", target, "--from", server.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "captioning", "download", *arguments], cwd=ROOT
    )
    part = tmp_path / "flickr8k.part" / "Flickr8k_Dataset.zip.part"
    half = len(server.files["/Flickr8k_Dataset.zip"]) // 2
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > half - 4 * download.CHUNK_BYTES):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(InputError, match="in use by another run"):
        download_flickr8k(target, server.url)
    process.send_signal(ending)
    process.wait(timeout=10)
    assert not target.exists()
    kept = part.stat().st_size
    assert 0 < kept <= half

    server.requests.clear()
    command(*arguments)
    # The text archive is complete and not downloaded again.
    assert server.requests == [("/Flickr8k_Dataset.zip", f"bytes={kept}-")]
    assert len(read_dataset(target).captions) == 3
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_reported_and_the_rest_arrives_later(server, tmp_path, monkeypatch):
    target = tmp_path / "flickr8k"
    monkeypatch.setattr(download, "NEEDED_BYTES", 3_000_000)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for module, name in ((zipfile.ZipFile, "extract"), (Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(InputError, match=r"\(No space left on device\); 3.00 MB are need"):
                download_flickr8k(target, server.url)
        assert not target.exists()
    download_flickr8k(target, server.url)
    assert len(read_dataset(target).captions) == 3


def test_the_published_sums_are_required_of_the_usual_source(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SOURCE", server.url)
    with pytest.raises(InputError, match=r"Flickr8k_text.zip: .*MD5 sum .*, expected bf6"):
        download_flickr8k(tmp_path / "flickr8k", server.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        (["cut"] * 3 * download.ATTEMPTS, 3 * download.ATTEMPTS + 1),  # each brings new bytes
        (["cut", "shift"], 3),
        ([503, 500, 429, None], 4),
        (["no length"], 1),
        (["stall"], 2),
    ],
)
def test_broken_transfers_are_resumed(server, tmp_path, faults, requests, monkeypatch):
    monkeypatch.setattr(download, "CHUNK_BYTES", 50)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    server.faults = list(faults)
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == server.files["/big"]
    assert len(server.requests) == requests
    if faults[0] == "cut":
        assert server.requests[1][1] == "bytes=500000-"


@pytest.mark.parametrize(
    ("faults", "requests", "said"),
    [(["cut"] * 100, 1 + download.ATTEMPTS, "cannot be downloaded"), ([404], 1, "HTTPError 404")],
)
def test_a_server_without_ranges_or_file_is_given_up(server, tmp_path, faults, requests, said):
    server.ignores_range = True
    server.faults = faults
    with pytest.raises(InputError, match=said):
        fetch(f"{server.url}big", tmp_path / "big")
    assert len(server.requests) == requests
    server.faults = ["cut"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == server.files["/big"]


@pytest.mark.parametrize("size", [999_999, 1_000_000, 2_000_000])
def test_a_part_that_is_complete_or_too_long(server, tmp_path, size):
    present = server.files["/big"] if size <= 1_000_000 else noise(size)
    (tmp_path / "big.part").write_bytes(present[:size])
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == server.files["/big"]


def changed(offset_from, offset):
    archive = bytearray(zipped({"image.jpg": noise(10_000)}))
    archive[archive.index(offset_from) + offset] ^= 1
    return bytes(archive)


UNSOUND = {
    "bomb": (zipped({"zeros": bytes(20_000_000)}), "unpacks to 20,000,000 bytes"),
    "damaged": (changed(b"image.jpg", 5000), "Bad CRC-32"),
    "page": (b"<html>Sign in to this network</html>", "not a zip file"),
    "encrypted": (changed(b"PK\x01\x02", 8), "encrypted"),
}


def test_members_that_lead_outside_are_unpacked_inside(tmp_path):
    evil = ["../../evil", "/evil", "..\\evil", "C:evil"]
    (tmp_path / "a.zip").write_bytes(zipped(dict.fromkeys(evil, "x")))
    download.unpack(tmp_path / "a.zip", tmp_path / "deep" / "inside")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"inside"}


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_archive_leaves_nothing(server, tmp_path, name, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 10_000_000)
    sound = server.files["/Flickr8k_Dataset.zip"]
    server.files["/Flickr8k_Dataset.zip"], reason = UNSOUND[name]
    target = tmp_path / "deep" / "down" / "flickr8k"
    with pytest.raises(InputError, match=f"Flickr8k_Dataset.zip: not used and removed: .*{reason}"):
        download_flickr8k(target, server.url)
    assert not target.exists()
    server.files["/Flickr8k_Dataset.zip"] = sound
    download_flickr8k(target, server.url)
    assert len(read_dataset(target).captions) == 3
