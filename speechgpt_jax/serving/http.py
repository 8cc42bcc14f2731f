"""HTTP: bounded bodies, errors, and replies that end when their client goes away."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from speechgpt_jax.decoding.remote import EngineFailed
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving.limits import BODY_SECONDS
from speechgpt_jax.serving.logs import log, log_bug
from speechgpt_jax.serving.protocol import ApiError

EVENT_STREAM = "text/event-stream"  # Media type of server-sent events.
# Bytes of a body beyond its limit that are read and dropped.
DROPPED_BYTES = 32 * 2**20

Result = TypeVar("Result")


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body of a request.

    If the body is larger, up to DROPPED_BYTES more are read and dropped: a client that is still
    sending when the connection closes would see a reset instead of the error.

    Raises:
      ApiError: status 413, it has more than `most_bytes`; 408, it did not arrive in time.
      ClientGone: the client went away before its end.
    """
    size, most_read = _stated_size(request), most_bytes + DROPPED_BYTES
    # A client that waits for 100 Continue has sent nothing yet.
    waits = request.headers.get("expect", "").lower() == "100-continue"
    data, received, is_whole = bytearray(), 0, False
    if size <= most_bytes or (size <= most_read and not waits):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS), contextlib.aclosing(_chunks(request)) as body:
                async for chunk in body:
                    received += len(chunk)
                    if received > most_read:
                        break
                    if received <= most_bytes:
                        data += chunk
                is_whole = True
    if max(size, received) > most_bytes:
        raise ApiError(
            413, f"The body has more than {most_bytes} bytes, the most that this server takes."
        )
    if not is_whole:
        raise ApiError(408, f"The body did not arrive within {BODY_SECONDS} s.", code="timeout")
    return bytes(data)


def _stated_size(request: Request) -> int:
    """The size that a request states for its body; 0 if it states none."""
    stated = request.headers.get("content-length", "0")
    return int(stated) if stated.isdecimal() else 0


async def _chunks(request: Request) -> AsyncGenerator[bytes, None]:
    """The body of a request as it arrives; raises ClientGone if the client goes away."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ClientGone from error


def explain(error: Exception) -> ApiError:
    """The error that a client gets for an exception; bugs are logged with their traceback."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineFailed):
        log("engine_failed", level=logging.ERROR, message=str(error))
        # The message has the address of a server that is none of the clients' business.
        return ApiError(503, "The server that writes the tokens failed; try again.", retry_after=5)
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    log_bug(error)
    return ApiError(500, "The server failed to answer this request; it has logged why.")


def sse(event: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    return f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()


class Stream(StreamingResponse):
    """A reply in pieces; its generator is closed as soon as the client goes away.

    The first piece is made before the status is sent, so that a request which can't be answered
    still gets an error's status.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], media_type: str):
        super().__init__(pieces, media_type=media_type)
        self._pieces = pieces
        # Proxies would collect the pieces.
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._pieces):
            first = await until_gone(receive, anext(self._pieces, b""))
            self.body_iterator = _with_first(first, self._pieces)
            await super().__call__(scope, receive, send)


async def _with_first(first: bytes, others: AsyncGenerator[bytes, None]):
    yield first
    async for piece in others:
        yield piece


class ClientGone(Exception):
    """The client has closed the connection before the reply."""


async def until_gone(receive: Receive, result: Awaitable[Result]) -> Result:
    """Waits for a result as long as the client is there.

    Raises:
      ClientGone: the client went away; what it asked for is cancelled.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(result), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientGone
    finally:
        for task in (work, watch):
            task.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def with_errors(
    pieces: AsyncGenerator[bytes, None], request: Request
) -> AsyncGenerator[bytes, None]:
    """The same server-sent events; an error after the first one becomes the last event.

    Its status, which the client no longer gets, becomes the request's `state.failed`.
    """
    begun = False
    async with contextlib.aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
                begun = True
        except Exception as error:
            if not begun:
                raise
            explained = explain(error)
            request.state.failed = explained.status
            yield sse(explained.body())
