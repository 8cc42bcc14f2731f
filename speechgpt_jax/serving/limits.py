"""Limits of what the server takes; importing this module is fast."""

import dataclasses

from speechgpt_jax.limits import check_number

# Seconds of the longest recording that may be allowed.
LONGEST_AUDIO = 3600
# Time for a body to arrive: meanwhile its request has a place among the replies.
BODY_SECONDS = 20
# Code with which a Realtime session ends when the server stops, registered as "Service Restart".
STOP_CODE = 1012


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a request, and of the queue.

    Attributes:
      body_bytes: size of its body, or of an event of a Realtime session.
      audio_seconds: length of a recording.
      waiting: replies that may wait for a slot; further requests are refused until one has ended.
      seconds: time for the request, its reply included.
      session_seconds: length of a Realtime session.
    """

    body_bytes: int = 16 * 2**20
    audio_seconds: float = 60.0
    waiting: int = 32
    seconds: float = 120.0
    session_seconds: float = 3600.0

    def __post_init__(self):
        check_number("body_bytes", self.body_bytes, at_least=1024)
        check_number("audio_seconds", self.audio_seconds, above=0, at_most=LONGEST_AUDIO)
        check_number("waiting", self.waiting, at_least=0)
        check_number("seconds", self.seconds, above=0)
        check_number("session_seconds", self.session_seconds, above=0)
