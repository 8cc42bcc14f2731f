"""Metrics of the server, as Prometheus reads them."""

from collections.abc import Callable

import prometheus_client as prometheus

_SECONDS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 60)


class Metrics:
    """Counters and times of one server.

    Attributes:
      requests: finished requests and Realtime sessions, by route and status; an error within a
        stream counts by its own status, though its client has got 200.
      seconds: their durations, by route.
      first_token_seconds, first_sound_seconds: time from the start of a reply, when its request has
        arrived and the recordings are decoded, to its first part, and to the first sound.
      tokens: tokens of prompts and replies, by kind; cached_prompt are those of prompts that an
        earlier request had read.
      cancelled: replies that were given up because the client went away or the time was over.
    """

    def __init__(self):
        self._registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "speechgpt_requests", "Finished requests.", ["route", "status"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "speechgpt_request_seconds",
            "Durations.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.first_token_seconds = prometheus.Histogram(
            "speechgpt_first_token_seconds",
            "Time to the first part of a reply.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.first_sound_seconds = prometheus.Histogram(
            "speechgpt_first_sound_seconds",
            "Time to the first sound of a reply.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.tokens = prometheus.Counter("speechgpt_tokens", "Tokens.", ["kind"], registry=registry)
        self.cancelled = prometheus.Counter(
            "speechgpt_cancelled_replies", "Replies given up before their end.", registry=registry
        )

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Adds a value that is read whenever the metrics are."""
        prometheus.Gauge(f"speechgpt_{name}", description, registry=self._registry).set_function(
            value
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return prometheus.generate_latest(self._registry)
