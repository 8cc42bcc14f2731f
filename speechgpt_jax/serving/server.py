"""Server: runs the application with uvicorn, against slow clients and for a graceful stop."""

import asyncio
import os
import socket
import ssl
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from speechgpt_jax.errors import UserError
from speechgpt_jax.serving.limits import BODY_SECONDS, STOP_CODE

# Time for a connection to send the head of a request.
HEAD_SECONDS = 10
# Connections at a time; requests on further ones get 503.
MOST_CONNECTIONS = 1000
# Time for replies in progress after SIGTERM or Ctrl-C.
STOP_SECONDS = 30
# Time for a client to confirm the end of its session meanwhile.
_CLOSE_SECONDS = 1.0


class Protocol(H11Protocol):
    """HTTP that closes connections on which no complete head of a request arrives in time.

    uvicorn only closes those on which nothing at all arrives after a reply.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._whole_app, self.app = self.app, self._answer
        self._deadline: asyncio.TimerHandle | None = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        # The application refuses it, with the headers and the line of the log of all replies.
        is_crowded = len(self.connections) >= MOST_CONNECTIONS
        scope.setdefault("state", {})["is_crowded"] = is_crowded
        await self._whole_app(scope, receive, send_and_close if is_crowded else send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle and not self.cycle.response_complete:
            self._expect_nothing()
        elif self._deadline is None:
            # What arrives may be the rest of a body whose request was refused.
            is_body = self.cycle and self.cycle.more_body
            self._expect_head(BODY_SECONDS if is_body else HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_head(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self._close)

    def _expect_nothing(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _close(self) -> None:
        # A WebSocket has its own protocol by then.
        if self.transport.get_protocol() is self and not self.transport.is_closing():
            self.transport.abort()


class SocketProtocol(WebSocketsSansIOProtocol):
    """WebSockets that are told when the server stops, and close themselves.

    uvicorn closes them at once, in the middle of a reply.
    """

    def shutdown(self) -> None:
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self.close_timeout = _CLOSE_SECONDS
        self.queue.put_nowait({"type": "websocket.disconnect", "code": STOP_CODE})

    async def send(self, message: Message) -> None:  # type: ignore[override]
        await super().send(message)  # type: ignore[arg-type]
        is_body = message["type"] == "websocket.http.response.body"
        if is_body and not message.get("more_body", False):
            # The connection was refused by a whole reply; uvicorn logs that as an error.
            self.handshake_complete = True


class Server(uvicorn.Server):
    """uvicorn with our settings; it ends if the warm-up of the application fails."""

    def __init__(
        self,
        app: Starlette,
        host: str,
        port: int,
        certificate: str | None = None,
        key: str | None = None,
    ):
        """The arguments are those of `run`."""
        self._app = app
        settings = uvicorn.Config(
            app,
            host,
            port,
            http=Protocol,
            ws=SocketProtocol,
            ws_max_size=app.state.event_bytes,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            log_config=None,  # `logs` writes what uvicorn logs.
            access_log=False,  # The application logs requests.
            log_level="warning",
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(settings)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; uvicorn asks ten times a second."""
        return await super().on_tick(counter) or self._app.state.failure is not None


def url(host: str, port: int, *, is_secure: bool) -> str:
    """ "::1", 8000 -> "http://[::1]:8000/"."""
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if is_secure else 'http'}://{name}:{port}/"


def run(app: Starlette, *, host: str, port: int, certificate: str | None, key: str | None) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes the replies in progress.

    Args:
      app: made by `create_app`.
      host, port: where to listen.
      certificate, key: files for https; None: http.

    Raises:
      UserError: the warm-up of the application has failed.
    """
    address = url(host, port, is_secure=certificate is not None)
    print(f"Serving at {address} while it warms up.", file=sys.stderr, flush=True)
    try:
        Server(app, host, port, certificate, key).run()
    except KeyboardInterrupt:
        if app.state.warm_up is not None and app.state.warm_up.is_alive():
            os._exit(130)  # Python would abort: the thread is inside the compiler.
        raise
    if app.state.failure is not None:
        raise app.state.failure


def check_certificate(certificate: str | None, key: str | None) -> None:
    """Raises a UserError if there is a certificate and it can't be used with the key."""
    if certificate:

        def refuse() -> str:
            # Else it would be asked for, again after the model is loaded.
            raise UserError(
                f"--ssl_keyfile={key} is encrypted by a pass phrase; expected one without: openssl"
                f" pkey -in {key} -out plain.pem"
            )

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, key, refuse)
        except OSError as error:
            raise UserError(
                f"--ssl_certfile, --ssl_keyfile: {error}; expected PEM files."
            ) from error


def check_port(host: str, port: int) -> None:
    """Raises a UserError unless one can listen at the address."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"--host={host} --port={port}: can't listen there ({error.strerror}); give another."
        ) from error
