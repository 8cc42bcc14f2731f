"""A user's mistake is one line; a bug keeps its traceback."""

import os
import subprocess
import sys

import pytest

from speechgpt_jax.arguments import IllegalValue
from speechgpt_jax.errors import UserError, one_line_errors


@pytest.mark.parametrize("error", [UserError("a  b\n c."), IllegalValue("a b c.")])
def test_a_users_mistake_is_one_line(error):
    with pytest.raises(SystemExit) as raised, one_line_errors():
        raise error
    assert raised.value.code == "Error: a b c."


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("b"), BrokenPipeError("c")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, one_line_errors():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("statement", "code", "shown"),
    [
        ("while True: print('a')", 141, ""),
        ("print('a'); sys.stdin.readline()", 141, ""),
        ("print('a'); sys.stdin.readline(); sys.exit(0)", 141, ""),
        ("print('a'); sys.stdin.readline(); raise UserError('b')", 1, "Error: b\n"),
        ("sys.stdin.readline()", 0, ""),
    ],
)
def test_a_program_whose_output_nobody_reads_ends_quietly(statement, code, shown):
    """As in `... | head -1`."""
    program = f"""
import sys
from speechgpt_jax.errors import UserError, one_line_errors
with one_line_errors():
    {statement}
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command, env = [sys.executable, "-c", program], {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, text=True, env=env, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        errors = process.stderr.read()
    assert process.returncode == code
    assert errors == shown
