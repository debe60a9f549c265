"""A web page that captions photographs.

    python -m captioning web
    python -m captioning web --port 9000 --model weights/best.safetensors

The page has no login. Photographs are never written to disk. Ctrl-C stops it.
"""

import argparse
import socket
from pathlib import Path

import numpy as np

from captioning.captions import LIGHT, load_captioner
from captioning.config import number
from captioning.errors import InputError, log

LOCAL, ANY = ("127.0.0.1", "localhost", "::1"), ("0.0.0.0", "::")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning web`."""
    add = parser.add_argument
    text = "port; 0 picks a free one (default: %(default)s)"
    add("--port", type=number(int, 0, 65535), default=8000, help=text)
    text = "address to listen on; 0.0.0.0 lets other computers in (default: %(default)s)"
    add("--host", default="127.0.0.1", help=text)
    text = "checkpoint of train.py, or .tflite file exported from one (default: the shipped one)"
    add("--model", metavar="FILE", help=text)
    add("--encoder", metavar="FILE", help="the model's encoder, if it is not found by its name")


def main(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    with listen(options.host, options.port) as listener:  # fails before the model is loaded
        if options.host not in LOCAL:
            log(f"warning: everyone who can reach {options.host} can use the page; it has no login")
        from captioning.extras.serve.web.app import beam_widths, describe, make_app, make_server

        default = None if options.encoder else LIGHT
        captioner = load_captioner(options.model or default, encoder=options.encoder)
        grey = np.full((64, 64, 3), 127, np.uint8)
        describe(captioner, grey, beam_widths(captioner)[1])  # compiles the search if it is Keras'
        model = Path(options.model).name if options.model else "the pretrained captioner"
        server = make_server(make_app(captioner, model, options.host))
        host = socket.gethostname() if options.host in ANY else options.host
        host = f"[{host}]" if ":" in host else host
        log(f"Open http://{host}:{listener.getsockname()[1]}/ in a browser. Ctrl-C stops it.")
        server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """Open the port; InputError if it is in use, or `host` is not of this computer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        problem = f"cannot listen on {host}, port {port} ({error})"
        raise InputError(f"{problem}; choose another --port or --host") from None
