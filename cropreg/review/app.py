"""The page's server: for one person at a time, on this machine only, behind an address that nobody can guess."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cropreg.errors import OutputError, UnreadableImage
from cropreg.review.pictures import DECODERS, MAX_REGION_PX, MAX_SCREEN_PX, SMALL_PX
from cropreg.review.queue import Item
from cropreg.review.session import Overtaken, Refused, Session, Wanted, detail

_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MAX_BODY_BYTES, _BODY_WITHIN_S = 256 * 1024, 10.0  # a contact sheet of 50 decisions is 12 KB
_MAX_BATCH, _MAX_DETAILS = 200, 100
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_PICTURE_HEADERS = {"cache-control": "private, max-age=600"}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Decision(BaseModel):
    """One decision in a request."""

    model_config = ConfigDict(extra="forbid")

    review_id: str = Field(pattern=r"^[0-9a-f-]{16,40}$")
    item: str = Field(max_length=40)
    decision: str = Field(max_length=10)
    box: tuple[float, float, float, float] | None = None
    angle_deg: float = 0.0
    seen: str | None = Field(None, max_length=40)
    undoes: str | None = Field(None, max_length=40)


class Decisions(BaseModel):
    """What ``POST decisions`` takes."""

    model_config = ConfigDict(extra="forbid")

    decisions: list[Decision] = Field(min_length=1, max_length=_MAX_BATCH)


def make(session: Session, token: str, port: int) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The application: a page, its pictures and its decisions below ``/<token>/``, for ``127.0.0.1:port``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    decoders = ThreadPoolExecutor(
        DECODERS, "decoder"
    )  # few threads, each with an arena of its own: memory that was freed is used again
    static = {entry.name: entry.read_bytes() for entry in (files("cropreg.review") / "static").iterdir()}

    def item_of(item_id: str) -> Item:
        try:
            return session.item(item_id)
        except KeyError:
            raise HTTPException(404, "There is no such picture in this list.") from None

    async def decoded(make: Callable[..., bytes], *arguments: Any) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(decoders, make, *arguments)

    @app.get("/")
    def page() -> Response:
        return Response(static["index.html"], media_type=_TYPES[".html"], headers={"cache-control": "no-store"})

    @app.get("/static/{name}")
    def static_file(name: str) -> Response:
        kind = _TYPES.get(name[name.rfind(".") :])
        if name not in static or kind is None:  # only names that were there at the start: a path leads nowhere
            raise HTTPException(404, "There is no such file.")
        return Response(static[name], media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/api/queue")
    def queue() -> dict[str, Any]:
        session.look()
        rows = [[item.id, item.name, item.verdict, state, item.box is not None] for item, state in session.states()]
        facts = {"kind": session.kind, "uri": session.uri, "who": session.who, "read_only": session.read_only}
        return {**facts, "version": session.version, "others": session.others(), "items": rows, "mine": session.mine()}

    @app.get("/api/news")
    def news(since: int = -1) -> dict[str, Any]:
        session.look()
        changes = session.changes
        decided = {item.id: state for item, state in session.states() if state != "open"} if since != changes else None
        return {"version": session.version, "changes": changes, "others": session.others(), "decided": decided}

    @app.get("/api/items")
    def items(ids: Annotated[str, Query(max_length=4000)]) -> list[dict[str, Any]]:
        wanted = ids.split(",")
        if len(wanted) > _MAX_DETAILS:
            raise HTTPException(422, f"At most {_MAX_DETAILS} pictures at a time.")
        return [detail(session, item_of(item_id)) for item_id in wanted]

    @app.get("/api/picture/{item_id}/small")
    def small(item_id: str) -> Response:
        return _picture(session.pictures.small(item_of(item_id)))

    @app.get("/api/picture/{item_id}/screen")
    async def screen(item_id: str, long: Annotated[int, Query(ge=64, le=MAX_SCREEN_PX)]) -> Response:
        return _picture(await decoded(session.pictures.screen, item_of(item_id), long))

    @app.get("/api/picture/{item_id}/crop")
    async def crop(item_id: str, long: Annotated[int, Query(ge=64, le=MAX_SCREEN_PX)] = SMALL_PX) -> Response:
        return _picture(await decoded(session.pictures.crop, item_of(item_id), long))

    @app.get("/api/picture/{item_id}/region")
    async def region(
        item_id: str,
        x: int,
        y: int,
        w: Annotated[int, Query(ge=1, le=MAX_REGION_PX)],
        h: Annotated[int, Query(ge=1, le=MAX_REGION_PX)],
    ) -> Response:
        try:
            return _picture(await decoded(session.pictures.region, item_of(item_id), x, y, w, h))
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    @app.get("/api/places/{item_id}")
    async def places(item_id: str) -> dict[str, Any]:
        item = item_of(item_id)
        await asyncio.get_running_loop().run_in_executor(decoders, session.pictures.look_elsewhere, item)
        return detail(session, item)

    @app.post("/api/decisions")
    async def decide(request: Request) -> list[dict[str, Any]]:
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            raise HTTPException(415, "Decisions are JSON.")
        try:
            sent = Decisions.model_validate_json(await _body(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise HTTPException(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        wanted = [Wanted(**decision.model_dump()) for decision in sent.decisions]
        for want in wanted:
            item_of(want.item)
        try:
            await asyncio.to_thread(session.decide, wanted)
        except Overtaken as error:
            raise HTTPException(409, str(error)) from None
        except Refused as error:
            raise HTTPException(403 if session.read_only else 422, str(error)) from None
        except OutputError as error:
            raise HTTPException(507, str(error)) from None
        return [detail(session, session.item(want.item)) for want in wanted]

    @app.exception_handler(UnreadableImage)
    async def unreadable(request: Request, error: UnreadableImage) -> Response:
        return JSONResponse({"detail": str(error)}, 404)

    return Guard(app, token, port)


class Guard:
    """Lets through only requests that know the token and were meant for this server, and puts the rules for browsers on every answer.

    The name in ``Host`` must be this machine's: a page elsewhere whose name was turned to 127.0.0.1 (DNS rebinding) has another.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], token: str, port: int) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            return  # no websockets, no lifespan
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(key.encode(), value.encode()) for key, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        _, token, rest = [*scope["path"].split("/", 2), "", ""][:3]
        if headers.get("host") not in self._hosts:
            await _say(send_guarded, 421, "This server answers to 127.0.0.1 only.")
        elif not hmac.compare_digest(token.encode(), self._token):
            await _say(send_guarded, 403, "Open the whole address that cropreg printed: it holds a key of its own.")
        elif "origin" in headers and headers["origin"].removeprefix("http://") not in self._hosts:
            await _say(send_guarded, 403, "This request comes from another page.")
        elif not scope["path"].startswith(f"/{token}/"):
            await _say(send_guarded, 404, "The address ends with a slash.")
        else:
            await self._app({**scope, "path": f"/{rest}", "raw_path": None, "root_path": ""}, receive, send_guarded)


async def _say(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _body(request: Request) -> bytes:
    """The body, counted while it comes in and waited for so long."""
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            async for piece in request.stream():
                data += piece
                if len(data) > _MAX_BODY_BYTES:
                    raise HTTPException(413, "Too many decisions in one request.", headers={"connection": "close"})
    except TimeoutError:
        raise HTTPException(408, "The request did not arrive whole in time.", headers={"connection": "close"}) from None
    return bytes(data)


def _picture(jpeg: bytes) -> Response:
    return Response(jpeg, media_type="image/jpeg", headers=_PICTURE_HEADERS)
