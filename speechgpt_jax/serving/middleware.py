"""What surrounds every request: its id and time limit, the API key, a place for its reply."""

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from speechgpt_jax.errors import UserError
from speechgpt_jax.serving.http import EVENT_STREAM, ClientGone, explain, sse
from speechgpt_jax.serving.protocol import ApiError, error_response
from speechgpt_jax.serving.realtime import TIMEOUT_CODE
from speechgpt_jax.serving.talker import Talker

_KEY_IN_PROTOCOL = "openai-insecure-api-key."

# Gets the scope of a request, its status, its seconds and its id.
Finished = Callable[[Scope, int, float, str], None]


class Watch:
    """Gives each request an id and a time limit, logs it, and turns exceptions into replies."""

    def __init__(self, app: ASGIApp, seconds: float, finished: Finished):
        """
        Args:
          app: answers the requests.
          seconds: time limit of a request.
          finished: is called after each request and Realtime session.
        """
        self._app, self._seconds, self._finished = app, seconds, finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._watch_session(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, start = f"req_{secrets.token_hex(12)}", time.monotonic()
        status, has_events = 0, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, has_events
            if message["type"] == "http.response.start":
                status = message["status"]
                content_type = Headers(raw=message["headers"]).get("content-type", "")
                has_events = content_type.startswith(EVENT_STREAM)
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            async with asyncio.timeout(self._seconds):
                if scope.get("state", {}).get("is_crowded"):
                    raise ApiError(
                        503, "The server has too many connections; try again.", retry_after=5
                    )
                await self._app(scope, receive, send_with_id)
        except ClientGone:
            status = 499  # nginx' status for a client that closed the connection.
        except TimeoutError:
            limit = self._seconds
            error = ApiError(408, f"The request took longer than {limit:g} s.", code="timeout")
            has_begun, status = bool(status), error.status
            if not has_begun:
                await error_response(error)(scope, receive, send_with_id)
            elif has_events:
                with contextlib.suppress(TimeoutError):  # The client doesn't read.
                    async with asyncio.timeout(1):
                        await send({"type": "http.response.body", "body": sse(error.body())})
            # Else the server cuts the reply off: the client must not take it for whole.
        except Exception as error:
            # Starlette wraps errors that it has a handler for, if the reply has begun.
            cause = error.__cause__
            explained = explain(cause if status and isinstance(cause, UserError) else error)
            has_begun, status = bool(status), explained.status
            if not has_begun:
                await error_response(explained)(scope, receive, send_with_id)
            # Else it is cut off, too.
        finally:
            self._finished(scope, status, time.monotonic() - start, request_id)

    async def _watch_session(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Logs a session at its end, with 101, 408 after a time-out, or the status of a refusal."""
        request_id, start = f"req_{secrets.token_hex(12)}", time.monotonic()
        status = 0

        async def send_with_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.close":
                # Before it is accepted, this is a refusal.
                status = 408 if message.get("code") == TIMEOUT_CODE else status or 403
            await send(message)

        try:
            await self._app(scope, receive, send_with_status)
        except Exception:
            status = 500
            raise
        finally:
            self._finished(scope, status, time.monotonic() - start, request_id)


class Keyed:
    """Asks for the API key under /v1."""

    def __init__(self, app: ASGIApp, api_key: str | None):
        """
        Args:
          app: answers the requests.
          api_key: the key; None: none is asked for.
        """
        self._app, self._api_key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._api_key is None or not scope.get("path", "").startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        scheme, _, given = HTTPConnection(scope).headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        for name in scope.get("subprotocols") or ():
            given = (
                name.removeprefix(_KEY_IN_PROTOCOL) if name.startswith(_KEY_IN_PROTOCOL) else given
            )
        if hmac.compare_digest(given.encode(), self._api_key.encode()):
            await self._app(scope, receive, send)
            return
        refusal = error_response(
            ApiError(
                401,
                "The API key is wrong or missing; expected the header Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
        )
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(refusal)
        else:
            await refusal(scope, receive, send)


class Admitted:
    """Counts a request among the replies in progress, or refuses it, until its reply is sent."""

    def __init__(self, app: ASGIApp, talker: Talker):
        """
        Args:
          app: answers the requests.
          talker: has places for replies.
        """
        self._app, self._talker = app, talker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._talker.admitted():
            await self._app(scope, receive, send)
