"""Caption photographs in the browser.

    python -m captioning.web
    python -m captioning.web --port 9000 --model weights/best.keras

The page is for the person at this machine: there is no login. Photographs are held in memory for
as long as they are captioned, and never written to disk. Ctrl-C ends it.
"""

import argparse
import importlib.util
import ipaddress
import socket
import sys

from captioning.cli import ArgumentParser, import_tensorflow, run, whole_number
from captioning.files import InputError

NEEDED = ("starlette", "uvicorn")
BACKLOG = 512  # connections that wait to be taken up
GRACE_SECONDS = 1  # from Ctrl-C until what is being answered is broken off


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see `--help`."""
    parser = ArgumentParser(
        prog="python -m captioning.web",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=whole_number(0, 65535), default=8000, help="0 takes any that is free")
    add("--host", default="127.0.0.1", help="address to listen at; others than this machine's own"
        " let everybody in who reaches it")  # fmt: skip
    add("--model", metavar="CHECKPOINT", help="a checkpoint of train.py (default: the shipped one)")
    add("--encoder", help="the model's encoder, if it is not where it was at training")
    return parser.parse_args(arguments)


def main() -> None:
    """Serve the page until Ctrl-C."""
    options = parse_arguments()
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        raise InputError(
            f"the page needs {' and '.join(missing)}; install them: pip install {' '.join(NEEDED)}"
        )
    with listen(options.host, options.port) as listener:  # before the seconds that loading takes
        if not is_local(options.host):
            log(f"warning: everybody who reaches {options.host} can use the page; it has no login")
        import_tensorflow()
        import uvicorn

        from captioning.captioner import Captioner
        from captioning.web.app import make_app
        from captioning.web.describe import Describer

        describer = Describer(Captioner.load(options.model, options.encoder))
        settings = uvicorn.Config(
            make_app(describer, options.host),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=BACKLOG,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        log(f"open {address(listener)} in a browser; Ctrl-C ends this")
        uvicorn.Server(settings).run([listener])
        raise KeyboardInterrupt  # also where a shell has made the process deaf to it: leave at once


def listen(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises:
        InputError: it is taken, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: no address of this machine ({error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"{host}, port {port}: cannot be used ({error.strerror}); choose another --port"
        ) from None
    return listener


def is_local(host: str) -> bool:
    """Whether nobody but this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(listener: socket.socket) -> str:
    """Where a browser finds the page."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def log(text: str) -> None:
    """Tell the user; stdout is for results alone."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, "stopped; nothing was kept; start again with")
