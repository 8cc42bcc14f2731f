"""Requests to an engine, and their answers as streams of tokens."""

import dataclasses
import queue
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from speechgpt_jax.decoding.sampling import Sampling
from speechgpt_jax.errors import UserError
from speechgpt_jax.limits import check_number

FinishReason = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
      prompt: token ids, at least one.
      max_new_tokens: longest answer, in tokens.
      min_new_tokens: shortest answer, in tokens, unless its form ends earlier.
      stop_ids: token ids that end the answer.
      sampling: how tokens are drawn.
      seed: the same seed gives the same answer; None: a new one for every request.
      state: state of the engine's table of masks at the start of the answer.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: Sequence[int] = ()
    min_new_tokens: int = 0
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    seed: int | None = None
    state: int = 0

    def __post_init__(self):
        check_number("max_new_tokens", self.max_new_tokens, at_least=1)
        check_number("min_new_tokens", self.min_new_tokens, at_least=0, at_most=self.max_new_tokens)
        if self.seed is not None:
            check_number("seed", self.seed, at_least=0, below=2**32)
        if not len(self.prompt):
            raise UserError("A prompt is empty; begin it with at least the bos token.")


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
      id: its id.
      logprob: natural logarithm of the model's probability for it, before penalty, mask and
        temperature.
    """

    id: int
    logprob: float


class Answer:
    """The tokens of an answer, without the stop token, while they are written.

    Iteration waits for the next token; leaving it early cancels the request.

    Attributes:
      request: what is answered.
      finish_reason: why the answer ended; None before its end.
      num_tokens: number of tokens that were written so far.
      num_cached: number of the prompt's tokens that an earlier request had read.
      is_cancelled: whether no further token is wanted.
    """

    def __init__(self, request: Request):
        self.request = request
        self.finish_reason: FinishReason | None = None
        self.num_tokens = self.num_cached = 0
        self.is_cancelled = False
        # Lists of tokens; None: the end; an exception of the engine.
        self._arrived: queue.SimpleQueue[list[Token] | BaseException | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Token]:
        for tokens in self.bursts():
            yield from tokens

    def bursts(self) -> Iterator[list[Token]]:
        """The tokens in the lists in which they arrive."""
        try:
            while (tokens := self._arrived.get()) is not None:
                if isinstance(tokens, BaseException):
                    raise tokens
                yield tokens
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ends the answer and frees its slot; does nothing after its end."""
        self.is_cancelled = True

    def put(self, tokens: list[Token]) -> None:
        """Adds tokens; for the engine."""
        self.num_tokens += len(tokens)
        if tokens:
            self._arrived.put(tokens)

    def finish(self, reason: FinishReason) -> None:
        """Ends the answer; for the engine."""
        self.finish_reason = reason
        self._arrived.put(None)

    def fail(self, error: BaseException) -> None:
        """Raises an error where the answer is read; for the engine."""
        self._arrived.put(error)
