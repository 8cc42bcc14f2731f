"""Lines of the server's log: all of them are JSON."""

import json
import logging

from speechgpt_jax.serving import logs


def test_all_lines_are_json(caplog):
    caplog.set_level(logging.INFO, "speechgpt_jax.serving")
    with caplog.at_level(logging.INFO):
        logs.log("ready", seconds=1.5)
        logging.getLogger("uvicorn.error").warning("Invalid %s", "request\n")
        try:
            raise ZeroDivisionError("by zero")
        except ZeroDivisionError as error:
            logs.log_bug(error)
            logging.getLogger("uvicorn.error").error("Exception\n", exc_info=error)
    lines = [logs.JsonLines().format(record) for record in caplog.records]
    assert not any("\n" in line for line in lines)
    ready, warning, bug, failure = map(json.loads, lines)
    assert (ready["event"], ready["seconds"]) == ("ready", 1.5)
    assert (warning["event"], warning["level"]) == ("uvicorn.error", "warning")
    assert warning["message"] == "Invalid request\n"
    assert bug["event"] == "bug" and bug["message"] == "ZeroDivisionError('by zero')"
    assert all("raise ZeroDivisionError" in line["traceback"] for line in (bug, failure))
