"""POST /v1/completions: token ids in, token ids out; what `--engine` of another server calls.

The fields are those of vLLM. A grammar is that of one of this project's forms (`masks.grammar`).
"""

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Generator
from typing import Annotated, Any, Literal

from pydantic import Field

from speechgpt_jax.decoding.masks import ANY, forms, grammar
from speechgpt_jax.decoding.requests import Answer, Request, Token
from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.serving import protocol
from speechgpt_jax.serving.http import sse
from speechgpt_jax.serving.logprobs import checked
from speechgpt_jax.serving.protocol import (
    MOST_PARTS,
    MOST_TOKENS,
    NoOthers,
    StreamOptions,
    Strict,
    TopK,
    TopP,
    Unsupported,
    invalid,
)
from speechgpt_jax.serving.talker import Talker, num_tokens
from speechgpt_jax.tokenizer import TextStream

Id = Annotated[int, Field(ge=0)]


class StructuredOutputs(Strict):
    """The form of the answer."""

    grammar: str


class CompletionRequest(Unsupported):
    """Body of POST /v1/completions."""

    model: str
    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Id], Field(min_length=1, max_length=MOST_TOKENS)]
    )
    max_tokens: Annotated[int, Field(ge=1)] = 16
    min_tokens: Annotated[int, Field(ge=0)] = 0
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    stop: Annotated[list, Field(max_length=0)] | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=MOST_PARTS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: NoOthers | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None


class TokenCompletion:
    """A prompt and the tokens that follow it.

    Attributes:
      answers: the answer, once it has begun.
    """

    def __init__(self, talker: Talker, name: str, request: CompletionRequest):
        """
        Args:
          talker: runs the request on the engine.
          name: name of the model.
          request: the request.

        Raises:
          ApiError: the model or the grammar is unknown, or the answer would be too long.
        """
        protocol.check_model(request.model, name)
        talker.check_length("max_tokens", request.max_tokens)
        self.answers: list[Answer] = []
        self._talker, self._request, self._name = talker, request, name
        self._tokenizer = talker.model.tokenizer
        self._text = TextStream(self._tokenizer)
        self._length = 0  # Characters that were written so far.
        self._is_begun = False  # Whether the last token's text is not complete.
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        if isinstance(request.prompt, str):
            talker.model.check_size(request.prompt)
        self._stop_ids = request.stop_token_ids or list(self._tokenizer.stop_ids)
        self._state = self._state_of_form()

    def _for_engine(self) -> Request:
        request, prompt = self._request, self._request.prompt
        return Request(
            self._tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt,
            request.max_tokens,
            self._stop_ids,
            request.min_tokens,
            Sampling(
                request.temperature,
                request.top_k,
                request.top_p,
                request.min_p,
                request.repetition_penalty,
            ),
            None if request.seed is None else request.seed % 2**32,
            self._state,
        )

    def _state_of_form(self) -> int:
        masks, given = self._talker.model.masks, self._request.structured_outputs
        if given is None:
            return masks.start(ANY)
        for form in forms(self._tokenizer):
            if given.grammar == grammar(form, self._tokenizer):
                return masks.start(form)
        raise invalid(
            "structured_outputs.grammar: expected the grammar of a form of this project.",
            "structured_outputs.grammar",
        )

    def _begin(self) -> Generator[list[Token]]:
        # Made in this thread, since a long text is tokenized.
        answer = self._talker.model.engine.submit(self._for_engine())
        self.answers = [answer]
        yield from answer.bursts()

    async def _bursts(self) -> AsyncGenerator[list[Token], None]:
        bursts = self._talker.reply(self, self._begin)
        async with contextlib.aclosing(bursts):
            async for burst in bursts:
                yield burst

    def _written(self, tokens: list[Token]) -> tuple[str, list[str], list[int]]:
        """The text that the next tokens complete, the text of each, and the place of each."""
        text, texts, places = "", [], []
        for token in tokens:
            places.append(self._length + len(text))
            piece = self._text.write(token.id)
            is_whole = piece and not self._is_begun
            texts.append(piece if is_whole else _shown(self._tokenizer.token_bytes(token.id)))
            self._is_begun = not piece
            text += piece
        self._length += len(text)
        return text, texts, places

    def _reply(self, tokens: list[Token], finish_reason: str | None) -> dict[str, Any]:
        """A reply, or a part of it, with the given tokens; with a reason it is the last one."""
        text, texts, places = self._written(tokens)
        if finish_reason:
            text += self._text.finish()
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None}
        if self._request.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
        if self._request.logprobs is not None:
            logprobs = [checked(token.logprob) for token in tokens]
            choice["logprobs"] = {
                "tokens": texts,
                "token_logprobs": logprobs,
                "top_logprobs": [{text: value} for text, value in zip(texts, logprobs)],
                "text_offset": places,
            }
        head = {"id": self._id, "object": "text_completion", "created": self._created}
        choices = [{**choice, "finish_reason": finish_reason}]
        return {**head, "model": self._name, "choices": choices}

    @property
    def _finish_reason(self) -> str:
        is_long = any(answer.finish_reason == "length" for answer in self.answers)
        return "length" if is_long else "stop"

    async def whole(self) -> dict[str, Any]:
        """The reply as JSON."""
        tokens = [token async for burst in self._bursts() for token in burst]
        usage = protocol.usage(*num_tokens(self))
        return {**self._reply(tokens, self._finish_reason), "usage": usage}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events."""
        bursts = self._bursts()
        async with contextlib.aclosing(bursts):
            async for burst in bursts:
                yield sse(self._reply(burst, None))
        yield sse(self._reply([], self._finish_reason))
        if self._request.stream_options and self._request.stream_options.include_usage:
            usage = protocol.usage(*num_tokens(self))
            yield sse({**self._reply([], None), "choices": [], "usage": usage})
        yield sse("[DONE]")


def _shown(data: bytes) -> str:
    """A token as text; a part of a character as OpenAI writes it, b"\\xc3" -> "bytes:\\\\xc3"."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
