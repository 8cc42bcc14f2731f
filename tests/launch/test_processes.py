"""Programs that are ended at a time limit."""

import time

from speechgpt_jax import processes


def test_a_time_limit_ends_a_program_and_what_it_started(capfd):
    start = time.monotonic()
    # The child of the shell has its output open.
    words = ["sh", "-c", "sleep 60; true"]
    assert processes.run(words, timeout=0.2) == processes.TIMEOUT_EXIT_CODE
    assert processes.output(words, timeout=0.2) is None
    assert time.monotonic() - start < 20
    assert capfd.readouterr().err == "sh did not end within 0.2 seconds.\n" * 2


def test_in_time(capfd):
    assert processes.run(["cat"], "text", timeout=20) == 0
    assert capfd.readouterr().out == "text"
    assert processes.output(["echo", "a"], timeout=20) == "a\n"
    assert processes.output(["false"], timeout=20) is None
