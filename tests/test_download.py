import http.server
import io
import json
import random
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from captioning import download
from captioning.dataset import main, read_dataset
from captioning.download import (
    TransferError,
    check_archive,
    download_flickr8k,
    fetch,
    unpack,
    work_folder,
)
from captioning.files import InputError

TOKENS = "".join(f"{image}.jpg#{n}\tA dog {n} .\n" for image in "abc" for n in range(5))
TEXT_FILES = {
    "Flickr8k.token.txt": TOKENS,
    "Flickr_8k.trainImages.txt": "a.jpg\n",
    "Flickr_8k.devImages.txt": "b.jpg\n",
    "Flickr_8k.testImages.txt": "c.jpg\n",
    "__MACOSX/._readme.txt": "",
}


def noise(size):
    return random.Random(size).randbytes(size)


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


def data_set_archives():
    images = {f"Flicker8k_Dataset/{image}.jpg": noise(100_000) for image in "abc"}
    return {
        "/Flickr8k_Dataset.zip": zipped({**images, "__MACOSX/._a.jpg": "x"}),
        "/Flickr8k_text.zip": zipped(TEXT_FILES),
    }


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; the faults named in `faults` befall one request each, in turn."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = data_set_archives()
        self.faults = []
        self.ignores_range = False
        self.validator = ("ETag", '"one"')
        self.redirect = None
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
        if isinstance(fault, int) or self.path not in server.files:
            return self.send_error(fault or 404)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = server.files[self.path]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        valid = self.headers["If-Range"] == server.validator[1]
        start = int(wanted[1]) if wanted and valid and not server.ignores_range else 0
        if wanted and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            first = start + (fault == "shift")
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if server.validator[0]:
            self.send_header(*server.validator)
        announced = len(content) - start + {"too many": 1000, "too few": -1000}.get(fault, 0)
        if fault != "no length":
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        body = content[start:]
        if fault in ("cut", "stall"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "stall":
            time.sleep(30)
        return None


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
    monkeypatch.setattr(download, "RETRY_PAUSE_SECONDS", 0.0)


@pytest.fixture
def big(server):
    """A file of noise on the server: its content."""
    server.files["/big"] = noise(1_000_000)
    return server.files["/big"]


# ---- the command --------------------------------------------------------------------------------


def test_the_command_brings_a_readable_data_set(server, tmp_path, capsys):
    target = tmp_path / "data" / "flickr8k"
    assert main(["download", "--to", str(target), "--from", server.url]) == 0
    out, err = capsys.readouterr()
    assert "train 1, dev 1, test 1" in out
    assert "Flickr8k_Dataset.zip" in err  # the progress bar
    dataset = read_dataset(target)
    assert dataset.layout == "official"
    assert dataset.captions["a.jpg"] == [f"A dog {n} ." for n in range(5)]
    assert (target / "Flicker8k_Dataset" / "a.jpg").read_bytes() == noise(100_000)
    assert not list(tmp_path.rglob("__MACOSX"))
    assert names_in(tmp_path / "data") == ["flickr8k"]  # archives and work folder are gone


def test_the_command_does_nothing_where_a_data_set_is(server, tmp_path, capsys):
    target = tmp_path / "flickr8k"
    command = ["download", "--to", str(target), "--from", server.url]
    assert main(command) == 0
    server.requests.clear()
    capsys.readouterr()
    assert main(command) == 0
    assert "already there" in capsys.readouterr().err
    assert server.requests == []


def test_an_empty_target_is_filled_and_a_link_to_another_disk_followed(server, tmp_path):
    disk = tmp_path / "disk" / "flickr8k"
    disk.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(disk)
    download_flickr8k(link, server.url)
    assert link.is_symlink()
    assert len(read_dataset(disk).captions) == 3


def test_a_target_with_other_things_in_it_is_left_alone(server, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="choose another folder"):
        download_flickr8k(tmp_path, server.url)
    assert names_in(tmp_path) == ["mine.txt"]
    assert server.requests == []


def test_no_network_is_told_in_one_line(server, tmp_path, capsys):
    server.server_close()  # nothing listens at this port any more
    target = tmp_path / "flickr8k"
    with pytest.raises(InputError) as caught:
        main(["download", "--to", str(target), "--from", server.url])
    told = str(caught.value)
    assert told.startswith("cannot reach 127.0.0.1: ")
    assert told.endswith(f"get the two archives by other means and unpack them into {target}")
    assert "\n" not in told
    assert capsys.readouterr() == ("", "")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "source",
    [
        "http://example.org/",
        "ftp://example.org/",
        "file:///data/",
        "nonsense",
        "https://",
        "http://[bad/",
        "https://example.org:port/",
    ],
)
def test_only_https_is_accepted_beyond_this_machine(source, tmp_path):
    with pytest.raises(InputError, match="not a usable address"):
        main(["download", "--to", str(tmp_path / "x"), "--from", source])


def test_a_command_that_fails_is_one_line_and_status_2(tmp_path):
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" / "flickr8k"
    ended = subprocess.run(
        [sys.executable, "-m", "captioning.dataset", "download", "--to", target],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {target}: cannot be written (")
    assert ended.stderr.count("\n") == 1
    assert names_in(tmp_path) == ["file"]


def test_a_redirect_to_plain_http_is_refused(server, tmp_path):
    server.redirect = "http://example.org/Flickr8k_text.zip"
    with pytest.raises(InputError, match=r"cannot reach 127\.0\.0\.1: http://example.org/"):
        download_flickr8k(tmp_path / "flickr8k", server.url)
    assert len(server.requests) == 1


def test_a_redirect_on_this_machine_is_followed(server, tmp_path, big):
    other = Server()
    other.redirect = f"{server.url}big"
    other.files["/elsewhere"] = b""
    thread = threading.Thread(target=other.handle_request)
    thread.start()
    fetch(f"{other.url}elsewhere", tmp_path / "big")
    thread.join()
    other.server_close()
    assert (tmp_path / "big").read_bytes() == big


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=lambda ending: ending.name)
def test_interrupting_keeps_what_has_arrived_and_the_same_command_resumes(server, tmp_path, ending):
    server.faults = [None, "stall"]
    target = tmp_path / "flickr8k"
    arguments = ["download", "--to", str(target), "--from", server.url]
    process = subprocess.Popen(
        [sys.executable, "-m", "captioning.dataset", *arguments],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )
    part = work_folder(target) / "Flickr8k_Dataset.zip.part"
    half = len(server.files["/Flickr8k_Dataset.zip"]) // 2
    deadline = time.monotonic() + 15
    # Some bytes wait in the file's buffer until it is closed.
    while not (part.exists() and part.stat().st_size > half - 2 * download.CHUNK_BYTES):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if ending == signal.SIGKILL:  # meanwhile, another run keeps away
        with pytest.raises(InputError, match=rf"in use by another run \(process {process.pid}\)"):
            download_flickr8k(target, server.url)
    process.send_signal(ending)
    _, err = process.communicate(timeout=10)
    if ending == signal.SIGINT:
        assert process.returncode == 130
        assert "what has arrived is kept" in err
        assert err.splitlines()[-1] == shlex.join(
            ["python", "-m", "captioning.dataset", *arguments]
        )
        assert "Traceback" not in err
    assert not target.exists()
    kept = part.stat().st_size
    assert 0 < kept <= half

    server.requests.clear()
    assert main(arguments) == 0
    # The text archive is whole and not fetched again.
    assert server.requests == [("/Flickr8k_Dataset.zip", f"bytes={kept}-")]
    assert len(read_dataset(target).captions) == 3


def test_the_published_sums_are_required_of_the_usual_source(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SOURCE", server.url)
    target = tmp_path / "flickr8k"
    with pytest.raises(InputError, match=r"Flickr8k_text.zip: refused.*MD5 sum is .* expected bf6"):
        download_flickr8k(target, server.url)
    assert not target.exists()
    assert not list(tmp_path.rglob("*.part"))


# ---- the transfer -------------------------------------------------------------------------------


def test_a_cut_transfer_resumes_where_it_broke_off(server, tmp_path, big):
    server.faults = ["cut", "cut"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=500000-", "bytes=750000-"]


def test_progress_counts_against_giving_up(server, tmp_path, big):
    server.faults = ["cut"] * 3 * download.ATTEMPTS  # each brings new bytes
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big


def test_a_server_without_ranges_sends_the_whole_again(server, tmp_path, big):
    server.ignores_range = True
    server.faults = ["cut", "cut"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big
    assert len(server.requests) == 3


def test_a_server_without_ranges_that_always_cuts_is_given_up(server, tmp_path, big):
    server.ignores_range = True
    server.faults = ["cut"] * 100
    with pytest.raises(TransferError, match=r"broke off after 500,000 of 1,000,000 bytes"):
        fetch(f"{server.url}big", tmp_path / "big")
    assert len(server.requests) == download.ATTEMPTS


def test_a_file_that_changed_on_the_server_is_not_mixed_with_the_old(server, tmp_path, big):
    server.faults = ["cut", 404]
    with pytest.raises(TransferError):
        fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big[:500_000]
    server.files["/big"] = noise(900_000)
    server.validator = ("ETag", '"two"')
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == noise(900_000)
    assert server.requests[-1][1] == "bytes=500000-"


@pytest.mark.parametrize(
    ("validator", "resumes"),
    [
        (("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT"), True),
        (("ETag", 'W/"weak"'), False),
        ((None, None), False),
    ],
)
def test_only_a_strong_validator_lets_a_transfer_resume(server, tmp_path, big, validator, resumes):
    server.validator = validator
    server.faults = ["cut"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big
    assert server.requests[1][1] == ("bytes=500000-" if resumes else None)


def test_another_part_than_asked_for_is_not_appended(server, tmp_path, big):
    server.faults = ["cut", "shift"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big


def test_a_part_the_server_finds_too_long_is_fetched_anew(server, tmp_path, big):
    state = {"url": f"{server.url}big", "length": 3_000_000, "validator": '"one"'}
    (tmp_path / "big").write_bytes(noise(2_000_000))
    (tmp_path / "big.json").write_text(json.dumps(state))
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"url": "http://elsewhere/big"}', "\x00"])
def test_a_part_of_unknown_origin_is_fetched_anew(server, tmp_path, big, state):
    (tmp_path / "big").write_bytes(b"something else")
    (tmp_path / "big.json").write_text(state)
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big


def test_a_file_without_announced_length_is_taken_to_its_end(server, tmp_path, big):
    server.faults = ["no length"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big


def test_a_passing_fault_of_the_server_is_retried(server, tmp_path, big):
    server.faults = [503, 500]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(TransferError, match="404 Not Found"):
        fetch(f"{server.url}absent", tmp_path / "absent")
    assert len(server.requests) == 1


def test_a_stalled_server_is_given_up(server, tmp_path, big, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(time, "sleep", threading.Event().wait)
    server.faults = ["stall"]
    fetch(f"{server.url}big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == big
    assert server.requests[1][1] == "bytes=500000-"


def test_a_length_announced_too_long_is_an_error(server, tmp_path):
    server.faults = ["too many"] * 100
    with pytest.raises(InputError, match=r"cannot reach 127\.0\.0\.1: "):
        download_flickr8k(tmp_path / "flickr8k", server.url)
    assert not (tmp_path / "flickr8k").exists()


def test_a_length_announced_too_short_is_an_error(server, tmp_path):
    server.faults = [None, "too few"]
    with pytest.raises(InputError, match=r"Flickr8k_Dataset.zip: refused, nothing was unpacked"):
        download_flickr8k(tmp_path / "flickr8k", server.url)
    assert not (tmp_path / "flickr8k").exists()
    download_flickr8k(tmp_path / "flickr8k", server.url)  # the bad archive is not in the way
    assert len(read_dataset(tmp_path / "flickr8k").captions) == 3


def test_a_target_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        download_flickr8k(tmp_path / "file" / "flickr8k", server.url)


# ---- the archives -------------------------------------------------------------------------------


def linked(mode):
    member = zipfile.ZipInfo("link")
    member.create_system = 3
    member.external_attr = mode << 16
    return {member: "/etc/passwd"}


def lying_bomb():
    """40 MB of zeros whose table of contents says 10 bytes."""
    archive = zipped({"zeros": bytes(40_000_000)})
    return archive.replace((40_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))


def damaged():
    archive = bytearray(zipped({"image.jpg": noise(10_000)}))
    archive[5000] ^= 1
    return bytes(archive)


def encrypted():
    archive = bytearray(zipped({"image.jpg": "x"}))
    archive[archive.index(b"PK\x01\x02") + 8] |= 1
    return bytes(archive)


UNSOUND = {
    "parent": (zipped({"ok": "1", "../../evil": "x"}), "leads outside"),
    "parent inside": (zipped({"folder/../../evil": "x"}), "leads outside"),
    "parent in __MACOSX": (zipped({"__MACOSX/../../evil": "x"}), "leads outside"),
    "absolute": (zipped({"/evil": "x"}), "leads outside"),
    "backslash": (zipped({"..\\evil": "x"}), "leads outside"),
    "drive": (zipped({"C:evil": "x"}), "leads outside"),
    "link": (zipped(linked(stat.S_IFLNK | 0o777)), "neither a file nor a folder"),
    "device": (zipped(linked(stat.S_IFCHR | 0o666)), "neither a file nor a folder"),
    "pipe": (zipped(linked(stat.S_IFIFO | 0o666)), "neither a file nor a folder"),
    "bomb": (zipped({"zeros": bytes(20_000_000)}), "would unpack from"),
    "lying bomb": (lying_bomb(), "is damaged"),
    "damaged": (damaged(), "is damaged"),
    "truncated": (zipped({"image.jpg": noise(10_000)})[:5000], "not an undamaged zip"),
    "page": (b"<html>Sign in to this network</html>", "not an undamaged zip"),
    "empty": (b"", "not an undamaged zip"),
    "encrypted": (encrypted(), "encrypted"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_an_unsound_archive_is_refused_and_leaves_nothing(server, tmp_path, name):
    content, reason = UNSOUND[name]
    server.files["/Flickr8k_Dataset.zip"] = content
    target = tmp_path / "deep" / "down" / "flickr8k"
    with pytest.raises(InputError, match=f"Flickr8k_Dataset.zip: refused.*{reason}"):
        download_flickr8k(target, server.url)
    assert not target.exists()
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "Flickr8k_text.zip.part",
        "Flickr8k_text.zip.part.json",
        "Flickr8k_Dataset.zip.part.json",
    }


def test_a_total_beyond_any_data_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNPACKED_BYTES", 50_000)
    (tmp_path / "x.zip.part").write_bytes(zipped({"noise": noise(50_001)}))
    with pytest.raises(InputError, match="would unpack from"):
        check_archive(tmp_path / "x.zip.part")


def test_unusual_compression_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip.part", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("zeros", bytes(1000))
    with pytest.raises(InputError, match="compressed in an unusual way"):
        check_archive(tmp_path / "x.zip.part")


def test_a_sound_archive_unpacks_to_its_members(tmp_path):
    (tmp_path / "x.zip.part").write_bytes(zipped({"folder/": "", "folder/file": "content"}))
    check_archive(tmp_path / "x.zip.part")
    unpack(tmp_path / "x.zip.part", tmp_path / "out")
    assert (tmp_path / "out" / "folder" / "file").read_text() == "content"
