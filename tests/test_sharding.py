"""Meshes, and the same losses and gradients on each of them."""

import jax
import numpy as np
import pytest

from speechgpt_jax import sharding
from speechgpt_jax.errors import UserError
from speechgpt_jax.sharding import MeshConfig, mesh_shape
from tests import processes

pytestmark = pytest.mark.slow

# Eight simulated devices need a flag that JAX reads at its start, so this runs in a new process.
PROGRAM = """
import sys
sys.path.insert(0, "tests/training")
import dataclasses, jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from toy import CONFIG, UNITS, random_batch
from speechgpt_jax import sharding
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama import Llama
from speechgpt_jax.training.train_step import TrainState, make_train_step

lora = LoraConfig(rank=2, new_tokens_from=50)
config = dataclasses.replace(CONFIG, num_kv_heads=4, qkv_bias=True, qk_norm=True, lora=lora)
if "rows" not in sys.argv:  # Two key heads for four devices are repeated.
    config = dataclasses.replace(config, num_kv_heads=2)
batch = random_batch([12, 5, 9, 12, 3, 7, 11, 12])

def make():
    return nnx.state(Llama(config, rngs=nnx.Rngs(0)), nnx.Param)

graphdef = nnx.graphdef(nnx.eval_shape(lambda: Llama(config, rngs=nnx.Rngs(0))))
tx = optax.sgd(1.0)  # The parameters change by minus the gradient.
options = {"accumulation": 1, "loss_columns": 48, "seed": 0}
step = jax.jit(make_train_step(graphdef, tx, unit_ids=UNITS, **options))

def run(mesh_config, make_params=sharding.create_sharded):
    num_devices = np.prod(dataclasses.astuple(mesh_config))
    mesh = sharding.create_mesh(mesh_config, jax.devices()[:num_devices])
    params = make_params(make, mesh)
    with sharding.use_mesh(mesh):
        placed = sharding.place_batch(batch, mesh)
        state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))
        state, metrics = step(state, nnx.State({}), placed)
    return jax.device_get((params, state.params, metrics)), params

def placed_on(make, mesh):
    places = jax.tree.map(lambda x: x.sharding, sharding.abstract(make, mesh))
    return jax.device_put(expected[0], places)

expected, _ = run(sharding.MeshConfig(1, 1, 1, 1))
meshes = {
    "rows": [(2, 2, 1, 2), (8, 1, 1, 1), (1, 8, 1, 1), (1, 2, 1, 4)],
    "context": [(2, 2, 2, 1), (1, 2, 4, 1), (1, 1, 2, 2)],
    "few_key_heads": [(1, 1, 1, 4)],
}
for sizes in meshes[sys.argv[1]]:
    # Parameters created sharded are the same; checked once, since that compiles for seconds.
    make_params = sharding.create_sharded if sizes[:2] == (2, 2) else placed_on
    got, params = run(sharding.MeshConfig(*sizes), make_params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    kernel = params["layers"]["mlp"]["up_proj"]["kernel"][...]
    piece = kernel.addressable_shards[0].data
    assert piece.size == kernel.size // np.prod(sizes[1:]), (sizes, piece.shape)
    print("equal on", sizes)
"""


@pytest.mark.parametrize(("meshes", "count"), [("rows", 4), ("context", 3), ("few_key_heads", 1)])
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(meshes, count):
    done = processes.run(processes.run_on_eight_devices, PROGRAM, meshes)
    assert done.stdout.count("equal on") == count, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("config", "devices", "shape"),
    [
        (MeshConfig(), 8, (1, 8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, model=2), 8, (2, 2, 1, 2)),
        (MeshConfig(data=-1, fsdp=1), 4, (4, 1, 1, 1)),
        (MeshConfig(fsdp=2, context=-1), 8, (1, 2, 4, 1)),
        (MeshConfig(data=2, fsdp=4, slices=2), 8, (2, 4, 1, 1)),
    ],
)
def test_mesh_shape(config, devices, shape):
    assert mesh_shape(config, devices) == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3, fsdp=1), r"does not fill 8 devices.*set one of them to -1"),
        (MeshConfig(data=3, fsdp=-1), "does not fill 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "one of data, fsdp, context and model may be -1"),
        (MeshConfig(data=0), "sizes must be positive"),
        (MeshConfig(data=1, fsdp=-1, slices=2), "data must be a multiple of slices, got 1 and 2"),
    ],
)
def test_impossible_meshes(config, message):
    with pytest.raises(ValueError, match=message):
        mesh_shape(config, 8)


def test_cpus_are_no_slices():
    config = MeshConfig(data=2, fsdp=1, slices=2)
    with pytest.raises(
        UserError, match=r"are not 2 TPU slices .* set slices to the number of TPU slices"
    ):
        sharding.create_mesh(config, jax.devices() * 2)


def test_batches_must_divide_over_the_mesh():
    mesh = jax.sharding.AbstractMesh((2, 4, 4, 1), sharding.MESH_AXES)
    with pytest.raises(ValueError, match=r"6 rows .* 8 pieces; try a batch size of 8"):
        sharding.place_batch({"x": np.zeros((6, 4))}, mesh)
    with pytest.raises(ValueError, match=r"length 9 .* context = 4 pieces; try a length of 12"):
        sharding.place_batch({"x": np.zeros((8, 9))}, mesh)
