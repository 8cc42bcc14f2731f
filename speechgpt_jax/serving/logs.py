"""The server's log: lines of JSON, uvicorn's own ones among them."""

import json
import logging
import sys
import time

_OURS = logging.getLogger("speechgpt_jax.serving")


def log(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Logs one line of JSON."""
    _OURS.log(level, _line(event, **fields))


def log_bug(error: Exception) -> None:
    """Logs an exception that nobody has expected, with its traceback."""
    _OURS.error(_line("bug", message=repr(error)), exc_info=error)


def _line(event: str, **fields: object) -> str:
    return json.dumps({"time": round(time.time(), 3), "event": event, **fields})


def write_to_stderr() -> None:
    """Writes the log, and what uvicorn logs, to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for logger in (_OURS, logging.getLogger("uvicorn")):
        logger.addHandler(handler)
        logger.propagate = False  # absl's handler would add a prefix to the JSON, or drop it.
    _OURS.setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """Makes a line of JSON of each record; those of `log` are one already."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = record.getMessage()
        if record.name != _OURS.name:
            line = _line(record.name, level=record.levelname.lower(), message=line)
        if not record.exc_info:
            return line
        return json.dumps({**json.loads(line), "traceback": self.formatException(record.exc_info)})
