"""A web page that captions photographs: `python -m captioning web`.

    GET  /         the page, with /page.css, /page.js and /examples/NAME
    POST /caption  the bytes of an image file -> JSON, see `describe`; errors are lines of text

Every web page that is open in a browser can send requests to this computer. So requests from other
pages and for unknown host names are rejected, and a body is read up to a size limit.
"""

import argparse
import asyncio
import html
import io
import ipaddress
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from captioning import load_captioner
from captioning.captions import LIGHT, PhotoCaptioner
from captioning.config import number
from captioning.errors import InputError, log
from captioning.files import shipped
from captioning.images import Photograph, load_image

SHOWN = 5  # captions of the beam: the best and its alternatives
MAX_BYTES = 20_000_000  # of an image file
READ_AT_ONCE = 4  # image files in memory; other requests wait unread
BODY_SECONDS = 60  # in which an image file must have arrived
MAX_CONNECTIONS = 256  # further ones are answered 503
STOP_SECONDS = 1  # from Ctrl-C until requests in progress are dropped

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m captioning web`."""
    add = parser.add_argument
    add("--port", type=number(int, 0, 65535), default=8000, help="0: any (default: %(default)s)")
    text = "address to listen on; 0.0.0.0 lets other computers in (default: %(default)s)"
    add("--host", default="127.0.0.1", help=text)
    add("--model", metavar="FILE", help="a checkpoint or .tflite file (default: the shipped one)")
    add("--encoder", metavar="FILE", help="the model's encoder, if it is not found by its name")


def main(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    with listen(options.host, options.port) as listener:  # fails before the model is loaded
        if options.host not in ("127.0.0.1", "localhost"):
            log(f"warning: everyone who can reach {options.host} can use the page; it has no login")
        default = None if options.encoder else LIGHT
        captioner = load_captioner(options.model or default, encoder=options.encoder)
        describe(captioner, Image.new("RGB", (64, 64)))  # compiles the search if it is Keras'
        model = Path(options.model).name if options.model else "the pretrained captioner"
        server = make_server(captioner, model, options.host)
        host = socket.gethostname() if options.host == "0.0.0.0" else options.host
        log(f"Open http://{host}:{listener.getsockname()[1]}/ in a browser. Ctrl-C stops it.")
        server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """Open the port; InputError if it is in use, or `host` is not of this computer."""
    try:
        return socket.create_server((host, port))
    except OSError as error:
        problem = f"cannot listen on {host}, port {port} ({error})"
        raise InputError(f"{problem}; choose another --port or --host") from None


def make_server(captioner: PhotoCaptioner, model_name: str, host="127.0.0.1") -> uvicorn.Server:
    """The page, for requests to this computer or to `host`; one thread at a time captions.

    The server logs warnings alone; `run([socket])` returns after Ctrl-C.
    """
    host_names = {"localhost", host.lower(), socket.gethostname().lower()}
    photographs = [p for p in sorted(shipped("images").glob("*.jpg")) if p.stem != "captioned"]
    files = {f"/{name}": FOLDER / name for name in ("page.css", "page.js")}
    files |= {f"/examples/{path.name}": path for path in photographs}
    settings = {"model": model_name, "attention": captioner.has_attention, "limit": MAX_BYTES}
    settings["examples"] = [path.name for path in photographs]
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    page = page.replace("%%settings", html.escape(json.dumps(settings)))
    reading, captioning = asyncio.Semaphore(READ_AT_ONCE), asyncio.Lock()

    async def caption(request: Request) -> Response:
        async with reading:
            async with asyncio.timeout(BODY_SECONDS):
                photograph = io.BytesIO(await request.body())
            async with captioning:
                answer = await asyncio.to_thread(describe, captioner, photograph)
        return JSONResponse(answer)

    async def guard(request: Request, call_next) -> Response:
        host = request.headers.get("host", "")
        own = f"http://{host}"
        if not is_known(host, host_names):
            response = PlainTextResponse("unknown host name; use http://127.0.0.1 instead", 421)
        elif request.headers.get("origin", own) != own:
            response = PlainTextResponse("requests from other web pages are rejected", 403)
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    app = Starlette(
        routes=[
            Route("/", lambda _: Response(page, media_type="text/html")),
            Route("/caption", caption, methods=["POST"], max_body_size=MAX_BYTES),
            *(Route(name, lambda _, path=path: FileResponse(path)) for name, path in files.items()),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers=dict.fromkeys((InputError, ClientDisconnect, TimeoutError), reject),
    )
    limits = {"limit_concurrency": MAX_CONNECTIONS, "timeout_graceful_shutdown": STOP_SECONDS}
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", **limits))


def describe(captioner: PhotoCaptioner, photograph: Photograph) -> dict:
    """Caption a photograph; JSON-ready, with the beam's next best as `alternatives`.

    With attention each caption has `maps`: per word rows of 0..255, 255 where the model looked
    most. InputError: no picture.
    """
    features = captioner.encode([load_image(photograph, captioner.image_size)])
    (best,) = captioner.caption_features(features, n_best=SHOWN)
    answers = []
    for found in (best, *best.alternatives):
        answer = found.to_json() | {"words": found.words, "probabilities": found.probabilities}
        if captioner.has_attention:
            (maps,) = captioner.attention(features, [found.text])
            scaled = 255 * maps / maps.max(axis=(1, 2), keepdims=True)
            answer["maps"] = scaled.round().astype(int).tolist()
        answers.append(answer)
    return answers[0] | {"alternatives": answers[1:]}


def is_known(host: str, names: set[str]) -> bool:
    """Whether the Host header is an IP address, or a name that no web page elsewhere can take."""
    try:
        name = urlsplit(f"//{host}").hostname  # without the port
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def reject(request: Request, error: Exception) -> Response:
    """Say what is wrong with the picture; nobody listens after a disconnect."""
    if isinstance(error, TimeoutError):
        return PlainTextResponse(f"not received within {BODY_SECONDS} s", 408)
    return PlainTextResponse(str(error).removeprefix("the picture: "), 422)
