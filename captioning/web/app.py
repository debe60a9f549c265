"""The page over HTTP: three files, and one address that takes photographs.

    GET  /            the page; /page.css and /page.js belong to it
    POST /caption     the bytes of a picture -> JSON, see `captioning.web.describe`

Other programs and pages on the same machine can send requests here too. So a body is read only
when its turn comes, and only up to a limit; what another page sends is refused; and so is a
request for a host name that is not ours, which a page elsewhere may have pointed at this machine.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from importlib import resources

from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from captioning.files import InputError

MAX_BYTES = 20_000_000  # of a picture's file
READ_AT_ONCE = 4  # bodies in memory
MAX_WAITING = 64  # requests that wait their turn; more are sent away for RETRY_SECONDS
RETRY_SECONDS = 1
BODY_SECONDS = 30  # in which a body must have arrived
DISCARDED_BYTES = 4 * MAX_BYTES  # of a refused body: a sender hears nothing before it has sent

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def make_app(describe: Callable[[bytes], dict], host: str = "127.0.0.1"):
    """The page as an ASGI application.

    Args:
        describe: see `captioning.web.describe.Describer`; called in one thread at a time.
        host: a name that requests may be for, besides localhost and any address in numbers.
    """
    routes = [Route(path, _file(*file), methods=["GET"]) for path, file in FILES.items()]
    routes.append(Route("/caption", Counter(describe).caption, methods=["POST"]))
    handlers = {HTTPException: _refused, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    names = {"localhost", host.lower(), socket.gethostname().lower()} - {""}
    return _Door(app, names)


class _Door:
    """Lets in what is for this machine and from its own page; adds HEADERS to every answer."""

    def __init__(self, app, names: set[str]):
        self._app, self._names = app, names

    async def __call__(self, scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                added = ((name.lower().encode(), text.encode()) for name, text in HEADERS.items())
                message["headers"] = [*message["headers"], *added]
            await send(message)

        request = Request(scope, receive)
        app = self._app
        if not self._is_ours(request.headers.get("host", "")):
            app = _told(421, "this address is not known here; use http://127.0.0.1 and the port")
        elif _is_foreign(request):
            app = _told(403, "another page sent this; only this one's own requests are answered")
        await app(scope, receive, send_with_headers)

    def _is_ours(self, host: str) -> bool:
        """Whether `host` is ours: a name elsewhere may be pointed here, a number cannot."""
        name = host.lower().rpartition("]")[0] + "]" if host.startswith("[") else host.lower()
        name = name if name.endswith("]") else name.partition(":")[0]
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self._names
        return True


def _is_foreign(request: Request) -> bool:
    """Whether a browser says that another page makes this request change or compute something."""
    if request.method in ("GET", "HEAD"):
        return False  # the browser keeps the answer from other pages
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{request.headers['host']}":
        return True
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


class Counter:
    """Where photographs are handed in: a line, a few are read at once, one is captioned.

    Args:
        describe: bytes -> JSON-ready answer.
    """

    def __init__(self, describe: Callable[[bytes], dict]):
        """Open with an empty line."""
        self._describe = describe
        self._present = 0
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._captioning = CapacityLimiter(1)

    async def caption(self, request: Request) -> Response:
        """Answer a photograph."""
        if self._present >= MAX_WAITING + READ_AT_ONCE:
            await _discard(request)
            headers = {"Retry-After": str(RETRY_SECONDS)}
            return _told(503, "many photographs are waiting; try again in a moment", headers)
        self._present += 1
        try:
            async with self._reading:
                picture = await _read(request)
                if await request.is_disconnected():
                    raise ClientDisconnect
                answer = await to_thread.run_sync(self._describe, picture, limiter=self._captioning)
            return JSONResponse(answer)
        except InputError as error:
            return _told(422, str(error))
        except ClientDisconnect:
            return _told(400, "broken off")  # which nobody hears
        finally:
            self._present -= 1


async def _read(request: Request) -> bytes:
    """The body of a request, if it is as it should be.

    Raises:
        HTTPException: it is too large, too slow or empty.
    """
    too_large = HTTPException(
        413, f"the picture is too large: at most {MAX_BYTES / 1e6:g} MB are read, scale it down"
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BYTES:
        await _discard(request)
        raise too_large
    picture = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                if len(picture) <= MAX_BYTES:
                    picture += chunk
                if len(picture) > MAX_BYTES:
                    picture.clear()
                    await _discard(request)
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the picture took more than {BODY_SECONDS} s to come") from None
    if not picture:
        raise HTTPException(400, "no picture came; send the bytes of a picture file")
    return bytes(picture)


async def _discard(request: Request) -> None:
    """Let the sender finish, within bounds, without keeping what comes."""
    left = DISCARDED_BYTES
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _file(name: str, kind: str):
    content = resources.files("captioning.web").joinpath(name).read_text("utf-8")
    content = content.replace("%%limit", str(MAX_BYTES))

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


def _told(status: int, text: str, headers: dict | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


async def _refused(request: Request, error: HTTPException) -> Response:
    return _told(error.status_code, error.detail, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return _told(500, "this went wrong here, not with your picture; see the terminal")
