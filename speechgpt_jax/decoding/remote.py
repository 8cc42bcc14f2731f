"""Remote engine: another server generates the tokens; encoder, vocoder and forms stay here.

vLLM, SGLang, tpu-inference and our own server complete prompts given as token ids at
`/v1/completions` and return token ids, so that nothing is turned into text and back.
"""

import contextlib
import http.client
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from speechgpt_jax.decoding.defaults import CONTEXT
from speechgpt_jax.decoding.masks import FORBIDDEN, Masks, grammar
from speechgpt_jax.decoding.requests import Answer, FinishReason, Request, Token
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number
from speechgpt_jax.tokenizer import Tokenizer

# Longest silence of the server.
_SECONDS = 60
_CHECK_SECONDS = 2  # The same for `check_server`.
_EXPECTED = "expected a server with OpenAI's API, such as http://127.0.0.1:8001/v1."


class EngineFailed(UserError):
    """The server can't be reached, has failed, or runs another model: no fault of the request."""


class RemoteEngine:
    """Answers requests as `Engine` does, by a server that runs an export of the model.

    The server gets the form of an answer as a grammar. Where it ignores that, an answer ends before
    the first token that its form forbids.

    Attributes:
      num_slots: requests that are sent at the same time; others wait.
      context: most tokens of a prompt and its answer together.
      num_busy: number of requests that the server answers.
      num_waiting: number of requests that wait.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer,
        masks: Masks,
        *,
        api_key: str | None = None,
        num_slots: int = 8,
        context: int = CONTEXT,
    ):
        """Asks the server for the name of its model.

        Args:
          url: address of its API, such as http://127.0.0.1:8001/v1.
          tokenizer: the tokenizer of the model.
          masks: forms of the answers.
          api_key: its key; None: it asks for none.
          num_slots: see above.
          context: see above.

        Raises:
          UserError: there is no such server, or it serves no model.
        """
        check_number("num_slots", num_slots, at_least=1)
        check_number("context", context, at_least=2)
        self.num_slots, self.context = num_slots, context
        self.num_busy = self.num_waiting = 0
        self._url, self._api_key = url.rstrip("/"), api_key
        self._opener = urllib.request.build_opener(_Http, _Https)
        self._tokenizer, self._masks = tokenizer, masks
        self._free_slots, self._lock = threading.BoundedSemaphore(num_slots), threading.Lock()
        try:
            with self._open("models") as reply:
                self._name = json.load(reply)["data"][0]["id"]
        except UserError:
            raise
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
            raise UserError(f"{url} lists no models ({error!r}); {_EXPECTED}") from error

    def check_server(self) -> None:
        """Raises EngineFailed unless the server answers at once."""
        self._open("models", seconds=_CHECK_SECONDS).close()

    def submit(self, request: Request) -> Answer:
        """Begins to answer a request; returns at once.

        Raises:
          UserError: the request is longer than `context`.
        """
        self.check(request)
        answer = _RemoteAnswer(request)
        self._count(waiting=1)
        threading.Thread(target=self._run, args=(answer,), name="remote", daemon=True).start()
        return answer

    def check(self, request: Request) -> None:
        """Raises a UserError if a request is longer than `context`."""
        length = len(request.prompt) + request.max_new_tokens
        check_number("tokens of prompt and answer", length, at_most=self.context)

    def warm_up(self) -> None:
        """Nothing to do: the server is warm."""

    def _run(self, answer: "_RemoteAnswer") -> None:
        with self._free_slots:
            self._count(waiting=-1, busy=1)
            try:
                answer.finish(self._answer(answer))
            except BaseException as error:
                # `cancel` cuts the connection.
                answer.finish("cancelled") if answer.is_cancelled else answer.fail(error)
            finally:
                self._count(busy=-1)

    def _count(self, *, waiting: int = 0, busy: int = 0) -> None:
        with self._lock:
            self.num_waiting += waiting
            self.num_busy += busy

    def _answer(self, answer: "_RemoteAnswer") -> FinishReason:
        if answer.is_cancelled:
            return "cancelled"
        state, stop_ids = answer.request.state, set(answer.request.stop_ids)
        with self._open("completions", self._body(answer.request), answer.use) as reply:
            for event in _events(reply):
                if answer.is_cancelled:
                    return "cancelled"
                for choice in event.get("choices", ()):
                    for token in _tokens(choice):
                        if token.id >= self._masks.table.shape[1]:
                            raise EngineFailed(
                                f"The engine's server wrote the token {token.id}, which the"
                                " tokenizer lacks: it runs another model than --run."
                            )
                        state = int(self._masks.table[state, token.id])
                        if token.id in stop_ids or state == FORBIDDEN:
                            return "stop"
                        answer.put([token])
                    if reason := choice.get("finish_reason"):
                        return "length" if reason == "length" else "stop"
        raise EngineFailed(
            f"The engine's server broke off after {answer.num_tokens} tokens of an answer; its log"
            " may say why."
        )

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        form = self._masks.form(request.state)
        return {
            "model": self._name,
            "prompt": [int(id_) for id_ in request.prompt],
            "max_tokens": request.max_new_tokens,
            "min_tokens": request.min_new_tokens,
            "stop_token_ids": [int(id_) for id_ in request.stop_ids],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": request.seed,
            "stream": True,
            "return_token_ids": True,
            "logprobs": 0,
            "structured_outputs": {"grammar": grammar(form, self._tokenizer)},
        }

    def _open(
        self,
        path: str,
        body: dict | None = None,
        use: Callable[[socket.socket], None] = lambda connection: None,
        seconds: float = _SECONDS,
    ) -> http.client.HTTPResponse:
        """The reply to a request; `use` gets its connection before the request is sent.

        Raises:
          EngineFailed: the server fails, or says nothing for `seconds`.
          UserError: it refuses the body; the message is for clients and doesn't name the server.
        """
        key = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        url = f"{self._url}/{path}"
        try:
            request = _Request(
                url,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": "application/json", **key},
            )
            request.use = use
            return self._opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            message = error.read(500).decode(errors="replace")
            if body is not None and error.code == 400:
                raise UserError(f"The engine's server refuses the request: {message}") from error
            raise EngineFailed(f"{url} answers {error.code}: {message}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineFailed(f"{url} can't be reached ({error}); {_EXPECTED}") from error


class _RemoteAnswer(Answer):
    """An answer whose connection is cut when it is cancelled, which ends it at the server too.

    A thread that waits for the server's next event sees nothing else.
    """

    def __init__(self, request: Request):
        super().__init__(request)
        self._connection: socket.socket | None = None

    def use(self, connection: socket.socket) -> None:
        """Names the connection on which the answer comes."""
        self._connection = connection
        if self.is_cancelled:
            self._cut()

    def cancel(self) -> None:
        super().cancel()
        self._cut()

    def _cut(self) -> None:
        if self._connection:
            with contextlib.suppress(OSError):  # It has ended.
                # The `shutdown` of an SSLSocket would change how the reading thread reads.
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


class _Shown:
    """Shows the connection of a request to the request's function `use`."""

    def do_open(self, http_class, req, **options):
        use = getattr(req, "use", None)  # A redirection has none.

        def connection(*args, **kwargs):
            opened = http_class(*args, **kwargs)
            connect = opened.connect

            def connect_and_show():
                connect()
                if use:
                    use(opened.sock)

            opened.connect = connect_and_show
            return opened

        return super().do_open(connection, req, **options)  # type: ignore[misc]


class _Http(_Shown, urllib.request.HTTPHandler):
    pass


class _Https(_Shown, urllib.request.HTTPSHandler):
    pass


class _Request(urllib.request.Request):
    """A request, and the function that gets its connection."""

    use: Callable[[socket.socket], None]


def _events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Server-sent events.

    Raises:
      EngineFailed: it reports an error, is silent for too long or breaks off within an event.
    """
    try:
        for line in reply:
            data = line.decode().removeprefix("data:").strip()
            if line.startswith(b"data:") and data != "[DONE]":
                event = json.loads(data)
                if problem := event.get("error") or (event.get("object") == "error" and event):
                    raise EngineFailed(f"The engine's server failed: {problem}")
                yield event
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineFailed(f"The engine's server broke off an answer: {error!r}") from error


def _tokens(choice: dict[str, Any]) -> Iterator[Token]:
    """Tokens of a choice; their log-probabilities are NaN if the server doesn't give them."""
    ids = choice.get("token_ids")
    if choice.get("text") and ids is None:
        raise EngineFailed("The engine's server returns no token_ids; vLLM does from 0.10.2 on.")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    ids = ids or []
    yield from map(Token, ids, [*logprobs, *[float("nan")] * (len(ids) - len(logprobs))])
