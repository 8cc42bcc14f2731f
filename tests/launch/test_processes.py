"""Programs that are ended at a time limit."""

import os

from speechgpt_jax import processes


def test_a_time_limit_ends_a_program_and_what_it_started(tmp_path, capfd):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    # The child of the shell has its output open, and would write into the pipe later.
    words = ["sh", "-c", f"(sleep 4; echo late >&3) 3> {pipe}; true"]
    assert processes.run(words, timeout=0.2) == processes.TIMEOUT_EXIT_CODE
    assert processes.output(words, timeout=0.2) is None
    with open(reading) as lines:
        assert lines.read() == ""
    assert capfd.readouterr().err == "sh did not end within 0.2 seconds.\n" * 2


def test_in_time(capfd):
    assert processes.run(["cat"], "text", timeout=20) == 0
    assert capfd.readouterr().out == "text"
    assert processes.output(["echo", "a"], timeout=20) == "a\n"
    assert processes.output(["false"], timeout=20) is None
