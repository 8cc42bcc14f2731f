"""Options of XLA's compiler that a run is given."""

import jax
import pytest

from speechgpt_jax import sharding, xla_options
from speechgpt_jax.errors import UserError
from speechgpt_jax.training.stage import compiler_options
from tests.test_limits import stage

FUSION = "xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"xla_nonsense": 1},
            "for cpu refuses the option xla_nonsense = 1 .*No such compile option",
        ),
        ({"xla_cpu_use_xnnpack": "maybe"}, "refuses the option xla_cpu_use_xnnpack = 'maybe'"),
        ({"vmem": 1}, r"a dict such as .*, got 'vmem': 1\."),
        ({"xla_cpu_use_xnnpack": None}, "got 'xla_cpu_use_xnnpack': None"),
    ],
)
def test_options_that_the_compiler_refuses(options, message):
    with pytest.raises(UserError, match=message):
        xla_options.check(options, jax.devices()[0])


def test_a_runs_options_are_added_to_the_defaults():
    mesh = sharding.create_mesh(sharding.MeshConfig(), jax.devices()[:1])
    defaults = compiler_options(stage(), mesh)
    own = {"xla_cpu_use_xnnpack": False}
    xla_options.check(own, jax.devices()[0])
    assert compiler_options(stage(xla_options=own), mesh) == defaults | own
    assert compiler_options(stage(xla_options={FUSION: ""}), mesh) == {FUSION: ""}
