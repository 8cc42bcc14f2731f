"""The application: routes, who may call them, what is logged and measured.

One process answers all requests; replies run in threads (`talker`), everything else in the event
loop. Nothing from a request is used as a path: the page's files are read at the start.
"""

import asyncio
import contextlib
import dataclasses
import mimetypes
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket

from speechgpt_jax.decoding.conversation import Conversation
from speechgpt_jax.decoding.remote import EngineFailed
from speechgpt_jax.errors import UserError
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.audio_api import Speech, Transcription, parse_form
from speechgpt_jax.serving.chat_completions import Completion
from speechgpt_jax.serving.completions import CompletionRequest, TokenCompletion
from speechgpt_jax.serving.http import (
    EVENT_STREAM,
    Stream,
    explain,
    read_body,
    until_gone,
    with_errors,
)
from speechgpt_jax.serving.limits import Limits
from speechgpt_jax.serving.logs import log, log_bug
from speechgpt_jax.serving.metrics import Metrics
from speechgpt_jax.serving.middleware import Admitted, Keyed, Watch
from speechgpt_jax.serving.protocol import (
    ApiError,
    ChatRequest,
    SpeechRequest,
    error_response,
    still_loading,
)
from speechgpt_jax.serving.realtime import Session
from speechgpt_jax.serving.sound import MEDIA_TYPES
from speechgpt_jax.serving.talker import Talker

PAGE = Path(__file__).parent / "page"
# Time for a warm-up to end when the server stops.
_WARM_UP_END_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How the server is run.

    Attributes:
      name: what clients call the model.
      api_key: what clients must send; None: nothing.
      cors_origins: origins of other pages that may call the API; "*": all.
      log_words: what is said is logged too.
      limits: limits of a request, and of the queue.
    """

    name: str
    api_key: str | None = None
    cors_origins: Sequence[str] = ()
    log_words: bool = False
    limits: Limits = Limits()  # noqa: RUF009 (frozen)


def create_app(settings: Conversation, options: Options) -> Starlette:
    """The application that answers with one model.

    Its `state.warm_up` is the thread of the warm-up, None before; `state.failure` is a UserError if
    that has failed, else None; `state.event_bytes` is the largest event of a Realtime session.

    Args:
      settings: a conversation whose fields all replies start from.
      options: how the server is run.
    """
    return _Server(settings, options).app


class _Server:
    def __init__(self, settings: Conversation, options: Options):
        self._options, self._metrics = options, Metrics()
        self._talker = Talker(settings, options.limits, self._metrics)
        self._created, self._num_sessions = int(time.time()), 0
        self._page = {file.name: file.read_bytes() for file in PAGE.iterdir()}
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/page/{name}", self._page_file),
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._show_metrics),
                Route("/v1/models", self._models),
                Route("/v1/models/{name}", self._model),
                self._call("/v1/chat/completions", self._chat),
                self._call("/v1/completions", self._complete),
                self._call("/v1/audio/transcriptions", self._transcribe),
                self._call("/v1/audio/speech", self._speech),
                WebSocketRoute("/v1/realtime", self._realtime),
                WebSocketRoute("/{path:path}", self._no_session),
            ],
            middleware=[
                # Outside of all others: pages may read the errors of every one.
                *([cors] if options.cors_origins else []),
                Middleware(Watch, seconds=options.limits.seconds, finished=self._finished),
                Middleware(Keyed, api_key=options.api_key),
            ],
            exception_handlers={
                HTTPException: self._no_route,
                ApiError: self._explained,
                UserError: self._explained,
            },
            lifespan=self._lifespan,
        )
        self.app.state.failure = self.app.state.warm_up = None
        self.app.state.event_bytes = options.limits.body_bytes

    def _call(self, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        """A route whose requests are admitted before anything of them is read."""
        admitted = Middleware(Admitted, talker=self._talker)
        return Route(path, endpoint, methods=["POST"], middleware=[admitted])

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Warms up while /healthz is answered already."""
        # Nothing interrupts the compiler, and the end of the process need not wait for it.
        warm_up = threading.Thread(target=self._warm_up, name="warm-up", daemon=True)
        warm_up.start()
        self.app.state.warm_up = warm_up
        yield
        end = time.monotonic() + _WARM_UP_END_SECONDS
        while warm_up.is_alive() and time.monotonic() < end:
            self._talker.stop()
            await asyncio.sleep(0.05)

    def _warm_up(self) -> None:
        start = time.monotonic()
        try:
            self._talker.warm_up()
        except Exception as error:
            self.app.state.failure = _failure(error)
            return
        if self._talker.is_ready:
            log("ready", model=self._options.name, seconds=round(time.monotonic() - start, 2))

    # ---- page, health, models --------------------------------------------------------------------

    async def _index(self, request: Request) -> Response:
        return self._file("index.html")

    async def _page_file(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in self._page:
            raise HTTPException(404)
        return self._file(name)

    def _file(self, name: str) -> Response:
        response = Response(self._page[name], media_type=mimetypes.guess_type(name)[0])
        response.headers["Content-Security-Policy"] = (
            "default-src 'self'; img-src 'self' data:; media-src blob:; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-cache"
        return response

    async def _healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, request: Request) -> Response:
        reason = "warming up"
        if self._talker.is_ready:
            try:
                await self._talker.check_engine()
                return PlainTextResponse("ready\n")
            except EngineFailed:
                reason = "the server that writes the tokens can't be reached"
        return PlainTextResponse(f"{reason}\n", 503, {"Retry-After": "5"})

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        reply = protocol.models(self._options.name, self._created)
        # Additions of this server, for its page.
        talker = self._talker
        voices = {"voices": talker.voices, "default_voice": talker.default_voice}
        return JSONResponse({**reply, **voices})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        protocol.check_model(name, self._options.name)
        return JSONResponse(protocol.model(name, self._created))

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        given = f"{request.method} {request.url.path[:100]}"
        response = error_response(ApiError(error.status_code, f"{given}: {error.detail}."))
        response.headers.update(error.headers or {})
        return response

    async def _no_session(self, socket: WebSocket) -> None:
        given = f"WebSocket {socket.url.path[:100]}"
        await socket.send_denial_response(error_response(ApiError(404, f"{given}: Not Found.")))

    async def _explained(self, request: Request, error: Exception) -> Response:
        return error_response(explain(error))

    # ---- calls of the API ------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Response:
        body = await self._body(request)
        fields = protocol.parse_json(ChatRequest, body)
        completion = Completion(self._talker, self._options.name, fields)
        request.state.words = completion.words
        await until_gone(request.receive, completion.read_messages())
        if fields.stream:
            return Stream(with_errors(completion.stream(), request), EVENT_STREAM)
        return JSONResponse(await until_gone(request.receive, completion.whole()))

    async def _complete(self, request: Request) -> Response:
        fields = protocol.parse_json(CompletionRequest, await self._body(request))
        completion = TokenCompletion(self._talker, self._options.name, fields)
        if fields.stream:
            return Stream(with_errors(completion.stream(), request), EVENT_STREAM)
        return JSONResponse(await until_gone(request.receive, completion.whole()))

    async def _transcribe(self, request: Request) -> Response:
        body = await self._body(request)
        fields, recording = await parse_form(request.headers, body)
        wav = await until_gone(request.receive, self._talker.decode(recording))
        transcription = Transcription(self._talker, self._options.name, fields, wav)
        request.state.words = transcription.words
        if fields.stream:
            return Stream(with_errors(transcription.stream(), request), EVENT_STREAM)
        whole = await until_gone(request.receive, transcription.whole())
        return PlainTextResponse(whole) if isinstance(whole, str) else JSONResponse(whole)

    async def _speech(self, request: Request) -> Response:
        body = await self._body(request)
        fields = protocol.parse_json(SpeechRequest, body)
        speech = Speech(self._talker, self._options.name, fields)
        request.state.words = speech.words
        if fields.stream_format == "sse":
            return Stream(with_errors(speech.stream(), request), EVENT_STREAM)
        return Stream(speech.stream(), MEDIA_TYPES[speech.format])

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, self._options.limits.body_bytes)

    async def _realtime(self, socket: WebSocket) -> None:
        protocols = socket.scope.get("subprotocols") or []
        if refusal := self._refusal(socket):
            # Before the connection is accepted, so that clients get the status and the message.
            await socket.send_denial_response(error_response(refusal))
            return
        await socket.accept("realtime" if "realtime" in protocols else None)
        self._num_sessions += 1
        session = Session(socket, self._talker, self._options.name)
        socket.state.words, socket.state.counts = session.words, session.counts
        try:
            await session.run()
        finally:
            self._num_sessions -= 1

    def _refusal(self, socket: WebSocket) -> ApiError | None:
        """Why a session can't begin, if it can't."""
        if not self._is_allowed(socket.headers.get("origin"), socket.headers.get("host")):
            return ApiError(403, "Pages of this origin are not allowed; see --cors_origins.")
        try:
            protocol.check_model(
                socket.query_params.get("model") or self._options.name, self._options.name
            )
        except ApiError as error:
            return error
        if not self._talker.is_ready:
            return still_loading()
        if self._num_sessions >= self._talker.most_replies:
            return ApiError(
                429, "Too many sessions; try again.", code="rate_limit_exceeded", retry_after=5
            )
        return None

    def _is_allowed(self, origin: str | None, host: str | None) -> bool:
        """Whether a page may connect: browsers let every page open WebSockets to every server."""
        if origin is None or {origin, "*"} & {*self._options.cors_origins}:
            return True
        try:
            return urlsplit(origin).netloc == host
        except ValueError:  # No URL at all.
            return False

    # ---- one request -----------------------------------------------------------------------------

    def _finished(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """Logs and counts a request, or a Realtime session."""
        route, state = getattr(scope.get("route"), "path", "none"), scope.get("state", {})
        status = state.get("failed", status)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        counts, words = state.get("counts", dict), state.get("words", dict)
        said = words() if self._options.log_words else {}
        client = (scope.get("client") or ("", 0))[0]
        log(
            "request",
            route=route,
            status=status,
            seconds=round(seconds, 4),
            request_id=request_id,
            client=client,
            **counts(),
            **said,
        )


def _failure(error: Exception) -> UserError:
    """The error of a failed warm-up, as the user sees it; bugs are logged with their traceback."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in reason:
        return UserError(
            f"the model can't be warmed up, the memory is full ({reason}): choose a smaller"
            " --context or --num_slots."
        )
    log_bug(error)
    return UserError(f"the model can't be warmed up ({reason}); the traceback is in the log above.")
