"""Log-probabilities of tokens, as OpenAI's clients expect them."""

import math
from collections.abc import Iterable
from typing import Any

from speechgpt_jax.decoding.text_tokens import TextToken
from speechgpt_jax.serving.protocol import invalid

# Stands for a probability that is no number any more, as in OpenAI's API.
_LEAST = -9999.0


def described(tokens: Iterable[TextToken]) -> list[dict[str, Any]]:
    """Tokens with their bytes and log-probabilities.

    Raises:
      ApiError: they have none.
    """
    return [
        {
            "token": token.bytes.decode(errors="backslashreplace"),
            "logprob": checked(token.logprob),
            "bytes": list(token.bytes),
        }
        for token in tokens
    ]


def checked(logprob: float) -> float:
    """A log-probability that JSON can hold.

    Raises:
      ApiError: there is none, since the server of --engine gives none.
    """
    if math.isnan(logprob):
        raise invalid("logprobs: the server that writes the tokens gives none.", "logprobs")
    return max(logprob, _LEAST)
