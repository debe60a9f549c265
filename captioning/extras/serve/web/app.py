"""The web page over HTTP.

    GET  /         the page, with /page.css, /page.js and /examples/NAME
    POST /caption  the bytes of an image file -> JSON, see `describe`; errors are lines of text

Every web page that is open in a browser can send requests to this computer. So requests from
other pages and for unknown host names are rejected, and a body is read up to a size limit.
"""

import asyncio
import html
import io
import ipaddress
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from captioning.captions import Caption, PhotoCaptioner
from captioning.config import BEAM_WIDTH
from captioning.errors import InputError
from captioning.files import shipped
from captioning.images import Photograph, load_image

BEAM_WIDTHS = (1, 3, 5, 10)  # of a captioner that has all
MOST_CAPTIONS = 5  # of the beam: the best and its alternatives
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


def beam_widths(captioner: PhotoCaptioner) -> tuple[tuple[int, ...], int]:
    """The beam widths that the page offers, and the one that is chosen at first."""
    widths = captioner.beam_widths or BEAM_WIDTHS
    return widths, BEAM_WIDTH if BEAM_WIDTH in widths else widths[-1]


def make_app(captioner: PhotoCaptioner, model_name: str, host: str = "127.0.0.1") -> Starlette:
    """The page, for requests to this computer or to `host`; one thread at a time captions."""
    host_names = {"localhost", host.lower(), socket.gethostname().lower()}
    photographs = [p for p in sorted(shipped("images").glob("*.jpg")) if p.stem != "captioned"]
    files = {name: FOLDER / name for name in ("page.css", "page.js")}
    files |= {f"examples/{path.name}": path for path in photographs}
    widths, default_width = beam_widths(captioner)
    settings = {
        "model": model_name,
        "widths": widths,
        "width": default_width,
        "attention": captioner.has_attention,
        "examples": [path.name for path in photographs],
        "limit": MAX_BYTES,
    }
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    page = page.replace("%%settings", html.escape(json.dumps(settings)))
    reading, captioning = asyncio.Semaphore(READ_AT_ONCE), asyncio.Lock()

    async def show_page(request: Request) -> Response:
        return Response(page, media_type="text/html")

    async def send_file(request: Request) -> Response:
        if (name := request.path_params["name"]) not in files:
            raise HTTPException(404)
        return FileResponse(files[name])

    async def caption(request: Request) -> Response:
        width = request.query_params.get("beam_width", str(default_width))
        if width not in map(str, widths):
            raise HTTPException(400, f"beam_width={width}: expected one of {widths}")
        async with reading:
            photograph = io.BytesIO(await read_body(request))
            async with captioning:
                answer = await asyncio.to_thread(describe, captioner, photograph, int(width))
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

    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/caption", caption, methods=["POST"]),
            Route("/{name:path}", send_file),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        exception_handlers={InputError: reject, ClientDisconnect: reject},
    )


def describe(captioner: PhotoCaptioner, photograph: Photograph, beam_width: int) -> dict:
    """Caption a photograph with beam search, and greedily if that gives another caption.

    Returns JSON-ready `captions`, and as `alternatives` the beam's next best. With attention each
    has `maps`: per word rows of 0..255, 255 where the model looked most. InputError: no picture.
    """
    features = captioner.encode([load_image(photograph, captioner.image_size)])
    n_best = 1 if captioner.beam_widths else min(beam_width, MOST_CAPTIONS)
    (best,) = captioner.caption_features(features, beam_width, n_best=n_best)
    (greedy,) = captioner.caption_features(features, 1) if beam_width > 1 else (best,)

    def to_json(found: Caption, width: int) -> dict:
        answer = {
            "beam_width": width,
            "caption": found.text,
            "words": list(found.words),
            "probabilities": [round(probability, 4) for probability in found.probabilities],
            "confidence": round(found.confidence, 4),
        }
        if captioner.has_attention:
            (maps,) = captioner.attention(features, [found.text])
            scaled = 255 * maps / maps.max(axis=(1, 2), keepdims=True)
            answer["maps"] = scaled.round().astype(int).tolist()
        return answer

    captions = [to_json(best, beam_width)]
    if greedy.text != best.text:
        captions.append(to_json(greedy, 1))
    others = [other for other in best.alternatives if other.text != greedy.text]
    return {"captions": captions, "alternatives": [to_json(other, beam_width) for other in others]}


def is_known(host: str, names: set[str]) -> bool:
    """Whether the Host header is an IP address, or a name that no web page elsewhere can take."""
    try:
        name = urlsplit(f"//{host}").hostname  # without the port
        return name in names or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def read_body(request: Request) -> bytes:
    """The body of a request, or HTTPException if it is too large or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise HTTPException(413, f"larger than {MAX_BYTES / 1e6:g} MB; scale it down")
    except TimeoutError:
        raise HTTPException(408, f"not received within {BODY_SECONDS} s") from None
    return bytes(body)


async def reject(request: Request, error: InputError | ClientDisconnect) -> Response:
    """Say what is wrong with the picture; nobody listens after a disconnect."""
    return PlainTextResponse(str(error).removeprefix("the picture: "), 422)


def make_server(app: Starlette) -> uvicorn.Server:
    """A server that logs warnings alone; `run([socket])` returns after Ctrl-C."""
    settings = {"limit_concurrency": MAX_CONNECTIONS, "timeout_graceful_shutdown": STOP_SECONDS}
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", **settings))
