"""Counts the programs that JAX compiles."""

import contextlib
from collections.abc import Iterator

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """The names of the programs that are compiled in the block, by any thread."""
    names: list[str] = []

    def listen(event: str, seconds: float, **details: str) -> None:
        if event == EVENT:
            names.append(details.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
