"""A user's mistake is one line; a bug keeps its traceback."""

import pytest

from speechgpt_jax.arguments import IllegalValue
from speechgpt_jax.errors import UserError, one_line_errors


@pytest.mark.parametrize("error", [UserError("a  b\n c."), IllegalValue("a b c.")])
def test_a_users_mistake_is_one_line(error):
    with pytest.raises(SystemExit) as raised, one_line_errors():
        raise error
    assert raised.value.code == "Error: a b c."


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("b"), OSError("c")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, one_line_errors():
        raise error
    assert raised.value is error
