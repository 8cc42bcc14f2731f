"""Checkpoints on disk: saving and restoring, which are kept, and damaged ones."""

import gzip
import os
import resource
import time

import google.api_core.exceptions
import google.auth.exceptions
import google.protobuf.message
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.experimental import multihost_utils

from speechgpt_jax import checkpoints
from speechgpt_jax.checkpoints import Checkpoints, Damaged, Keep, NotSaved, Unreadable
from speechgpt_jax.checkpoints.problems import reading
from speechgpt_jax.checkpoints.steps import resolved
from speechgpt_jax.errors import UserError
from speechgpt_jax.training.train_step import TrainState
from tests import processes

TX = optax.adam(1e-3)


def make_state(seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    params = {
        "w": jax.random.normal(a, (50, 40)),
        "b": jax.random.normal(b, (40,), jnp.bfloat16),
    }
    return TrainState.create(params, TX)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("[Errno 13] Permission denied: 'params'"), Unreadable),
        (ConnectionResetError("[Errno 104] Connection reset by peer"), Unreadable),
        (google.api_core.exceptions.Forbidden("no access"), Unreadable),
        (google.auth.exceptions.TransportError("no route to host"), Unreadable),
        (ValueError('PERMISSION_DENIED: Error reading "gs://bucket/d/1"'), Unreadable),
        (ValueError("UNAVAILABLE: HTTP response code: 503"), Unreadable),
        (google.api_core.exceptions.NotFound("no such object"), Damaged),
        (google.protobuf.message.DecodeError("Error parsing message"), Damaged),
        (ValueError("DATA_LOSS: Error decoding B+tree node"), Damaged),
        (FileNotFoundError("[Errno 2] No such file or directory"), Damaged),
        (OSError("[Errno 5] Input/output error"), Damaged),
    ],
)
def test_what_the_network_refuses_is_not_damaged(error, kind):
    """A damaged checkpoint is renamed, one that can't be read is left alone."""
    with pytest.raises(kind, match="checkpoint runs/a"), reading(epath.Path("runs/a")):
        raise error


@pytest.fixture
def saved(tmp_path):
    """Checkpoints 1, 2 and 3, each with another state."""
    store = Checkpoints(tmp_path, Keep(last=3), {"config": "a.b = 3"})
    for step in (1, 2, 3):
        store.save(step, make_state(step), {"a": b"position %d" % step, "b": b""})
    store.close()
    return tmp_path


@pytest.mark.slow
def test_state_input_position_and_metadata_are_restored(saved):
    restored = Checkpoints(saved).restore_latest(make_state(), ["a", "c"])
    assert (restored.step, restored.input_positions) == (3, {"a": b"position 3"})
    assert_same(restored.state, make_state(3))
    position = saved / "checkpoints" / "3" / "input" / "a.gz"
    assert gzip.decompress(position.read_bytes()) == b"position 3"
    assert restored.state.params["b"].dtype == jnp.bfloat16
    assert checkpoints.read_metadata(saved)["config"] == "a.b = 3"
    assert checkpoints.latest(saved).name == "3"


def test_a_base_that_has_moved(tmp_path):
    for name, base in (("base", None), ("adapter", tmp_path / "base")):
        store = Checkpoints(tmp_path / name, base=base)
        store.save(1, make_state())
        store.close()
    assert "w" in checkpoints.Parameters(tmp_path / "adapter").shapes
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"trained on .*/base/checkpoints/1, which is gone"):
        checkpoints.Parameters(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("folder", "base", "path"),
    [
        ("/runs/com/checkpoints", "../../cm/checkpoints/3", "/runs/cm/checkpoints/3"),
        ("/runs/com/checkpoints", "gs://b/cm/checkpoints/3", "gs://b/cm/checkpoints/3"),
        ("gs://b/com/checkpoints", "../../cm/checkpoints/3", "gs://b/cm/checkpoints/3"),
        ("gs://b/com/checkpoints", "/runs/cm/checkpoints/3", "/runs/cm/checkpoints/3"),
        ("/runs/com/checkpoints", None, None),
    ],
)
def test_where_the_base_of_a_checkpoint_is(folder, base, path):
    assert resolved(epath.Path(folder), base) == path


def test_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path).restore_latest(make_state()) is None
    with pytest.raises(UserError, match="'zz://' is no file system"):
        checkpoints.read_metadata("zz://bucket/run")
    with pytest.raises(ValueError, match=r"no checkpoint in .*; give a run's folder"):
        checkpoints.latest(tmp_path)


def test_the_last_ones_and_every_kth_are_kept(tmp_path):
    store = Checkpoints(tmp_path, Keep(last=2, every=4))
    for step in range(1, 8):
        store.save(step, {"x": jnp.arange(3)})
    store.close()
    assert {int(path.name) for path in store.folder.iterdir()} == {4, 6, 7}


def test_the_best_one_is_kept_and_known_after_a_restart(tmp_path):
    for best, kept in (("test/loss", {3, 6}), ("test/accuracy", {2, 6})):
        folder = tmp_path / best.replace("/", "_")
        values = {1: (3.0, 0.1), 2: (2.0, 0.9), 3: (1.0, 0.2), 5: (4.0, 0.3)}
        for steps in (range(1, 5), range(5, 7)):
            store = Checkpoints(folder, Keep(last=1, best=best))
            for step in steps:
                loss, accuracy = values.get(step, (None, None))
                metrics = loss and {"test/loss": loss, "test/accuracy": accuracy}
                store.save(step, {"x": jnp.arange(3)}, metrics=metrics)
            store.close()
        assert {int(path.name) for path in store.folder.iterdir()} == kept


def test_the_same_step_is_saved_once(saved):
    store = Checkpoints(saved)
    store.save(3, make_state(9))
    store.close()
    assert_same(Checkpoints(saved).restore_latest(make_state()).state, make_state(3))


def _largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def cut_short(folder):
    file = _largest_file(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(folder):
    file = _largest_file(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose_a_file(folder):
    (folder / "state" / "manifest.ocdbt").unlink()


def spoil_the_metadata(folder):
    (folder / "metadata" / "metadata").write_text('{"config": ')


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_a_file, spoil_the_metadata])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(saved, damage, caplog):
    damage(saved / "checkpoints" / "3")
    store = Checkpoints(saved)
    restored = store.restore_latest(make_state())
    assert restored.step == 2
    assert_same(restored.state, make_state(2))
    assert "checkpoints/3 is damaged" in caplog.text
    # The step is repeated and saved again.
    store.save(3, make_state(3))
    store.close()
    assert Checkpoints(saved).restore_latest(make_state()).step == 3
    assert (saved / "checkpoints" / "damaged_3").exists()


@pytest.mark.slow
def test_a_step_that_is_damaged_twice(saved):
    for name in ("damaged_3", "damaged_3_2"):
        cut_short(saved / "checkpoints" / "3")
        store = Checkpoints(saved)
        assert store.restore_latest(make_state()).step == 2
        store.save(3, make_state(3))
        store.close()
        assert (saved / "checkpoints" / name).exists()
    assert Checkpoints(saved).restore_latest(make_state()).step == 3


def restore(folder):
    Checkpoints(folder).restore_latest(make_state())


@pytest.mark.slow
def test_a_damaged_checkpoint_prints_no_traceback(saved):
    for file in (saved / "checkpoints" / "3" / "state" / "d").iterdir():
        os.truncate(file, 3)
    printed = processes.run(restore, saved).stderr
    assert "checkpoints/3 is damaged" in printed and "Traceback" not in printed


def test_all_damaged(saved):
    for step in "123":
        lose_a_file(saved / "checkpoints" / step)
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged \(steps 3, 2, 1\)"):
        Checkpoints(saved).restore_latest(make_state())
    assert Checkpoints(saved).latest_step() == 3, "nothing was moved"


def test_saving_does_not_report_a_step_to_jax(tmp_path, monkeypatch):
    """Orbax would, from another thread and with the saved step, which the run may have passed."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    store = Checkpoints(tmp_path)
    store.save(1, make_state())
    store.close()
    assert not asked


def test_a_state_of_another_shape_is_no_damage(saved):
    state = make_state()
    other = TrainState.create({**state.params, "w": jnp.zeros((50, 41))}, TX)
    with pytest.raises(ValueError, match=r"has params.w of shape \(50, 40\), this run \(50, 41\)"):
        Checkpoints(saved).restore_latest(other)
    other = TrainState.create({**state.params, "v": jnp.zeros(3)}, TX)
    with pytest.raises(ValueError, match=r"lacks opt_state.0.mu.v"):
        Checkpoints(saved).restore_latest(other)
    assert Checkpoints(saved).latest_step() == 3


def test_a_killed_save_leaves_no_step(saved):
    # The folder that Orbax leaves if the process dies while it writes.
    os.rename(saved / "checkpoints" / "3", saved / "checkpoints" / "3.orbax-checkpoint-tmp-7")
    assert Checkpoints(saved).restore_latest(make_state()).step == 2


@pytest.fixture
def full_disk():
    """A function that makes every write beyond a few kilobytes fail, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path, full_disk):
    store = Checkpoints(tmp_path, Keep(last=1))
    store.save(1, make_state(1))
    store.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    full_disk()
    with pytest.raises(NotSaved, match=r"can't be written to .*\(step 1 is untouched\)") as error:
        store.save(2, make_state(2))
        # Writing fails in the background; the error is raised while training continues.
        for _ in range(300):
            time.sleep(0.1)
            store.check()
    assert "\n" not in str(error.value)
    assert "too large" in str(error.value), "the cause"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    # The previous checkpoint is intact, and once there is space the run resumes from it.
    store = Checkpoints(tmp_path, Keep(last=1))
    restored = store.restore_latest(make_state())
    assert restored.step == 1
    assert_same(restored.state, make_state(1))
    store.save(2, make_state(2))
    store.close()
    assert [path.name for path in store.folder.iterdir()] == ["2"]


def test_parameters_by_name(saved):
    shapes = checkpoints.Parameters(saved).shapes
    assert {name: x.shape for name, x in shapes.items()} == {"b": (40,), "w": (50, 40)}
    w = jax.ShapeDtypeStruct((50, 40), jnp.bfloat16)
    arrays = checkpoints.Parameters(saved / "checkpoints" / "2").restore({"w": w})
    np.testing.assert_array_equal(arrays["w"], make_state(2).params["w"].astype(jnp.bfloat16))


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax.sharding import NamedSharding, PartitionSpec as P
from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.checkpoints.arrays import _bit_sums, checksums
from speechgpt_jax.sharding import MeshConfig, create_mesh

x = jax.random.normal(jax.random.key(0), (16, 8))
def on(sizes, spec):
    return {"x": jax.device_put(x, NamedSharding(create_mesh(MeshConfig(*sizes)), spec))}
saved, wanted = on((1, 8), P("fsdp")), on((2, 1, 1, 4), P("data", "model"))
sums = checksums(saved)
assert sums == checksums(wanted) == jax.device_get(_bit_sums(wanted))
store = Checkpoints(sys.argv[1])
store.save(1, saved)
store.close()
got = Checkpoints(sys.argv[1]).restore_latest(wanted).state["x"]
assert got.sharding == wanted["x"].sharding, got.sharding
np.testing.assert_array_equal(got, x)
print("equal")
"""


@pytest.mark.slow
def test_restoring_on_another_mesh(tmp_path):
    done = processes.run(processes.run_on_eight_devices, PROGRAM, tmp_path)
    assert done.stdout.startswith("equal"), done.stderr[-3000:]


# ---- packed runs ---------------------------------------------------------------------------------


def save(run, parameters, base=None):
    store = Checkpoints(run, metadata={"model": {"size": 9}}, base=base)
    store.save(5, TrainState.create(parameters, TX))
    store.close()


@pytest.fixture
def packed(tmp_path):
    """A base and an adapter, each packed as bfloat16, and the folders of their runs."""
    runs, folders = [tmp_path / "base", tmp_path / "adapter"], [tmp_path / "p0", tmp_path / "p1"]
    for run, parameters, base in zip(
        runs, ({"w": jnp.full((9, 4), 1.001)}, {"lora": jnp.ones(3)}), (None, runs[0])
    ):
        save(run, parameters, base)
    checkpoints.pack(runs[0], folders[0], "bfloat16")
    checkpoints.pack(runs[1], folders[1], "bfloat16", base=folders[0])
    return runs, folders


def test_a_packed_run_is_read_like_a_run(packed, tmp_path):
    runs, folders = packed
    shapes = checkpoints.Parameters(folders[1]).shapes
    assert {(name, x.dtype.name) for name, x in shapes.items()} == {
        ("w", "bfloat16"),
        ("lora", "bfloat16"),
    }
    assert checkpoints.read_metadata(folders[1])["model"] == {"size": 9}
    assert checkpoints.Parameters(folders[1], with_bases=False).shapes.keys() == {"lora"}
    targets = checkpoints.Parameters(runs[1]).shapes
    arrays = checkpoints.Parameters(folders[1]).restore(targets)
    np.testing.assert_array_equal(arrays["w"], np.full((9, 4), 1.001).astype(jnp.bfloat16))
    assert arrays["w"].dtype == np.float32
    assert [checkpoints.run_folder(f) for f in folders] == list(map(checkpoints.latest, folders))
    assert checkpoints.run_folder(checkpoints.latest(runs[0])) == runs[0]
    checkpoints.pack(folders[0], tmp_path / "again")
    again = (tmp_path / "again" / "parameters.safetensors").read_bytes()
    assert again == (folders[0] / "parameters.safetensors").read_bytes()


def test_rows_are_packed_as_int8(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
    rows *= np.array([1e-6, 1, 1e6, 0, 30], np.float32)[:, None]
    exact = {
        "norm.scale": rows[:, 0],
        "bias": rows[0, 1],
        "kernel": np.arange(6, dtype=np.int8).reshape(2, 3),  # of a base that is int8 already
    }
    save(tmp_path / "run", {"w": jnp.asarray(rows)} | jax.tree.map(jnp.asarray, exact))
    checkpoints.pack(tmp_path / "run", tmp_path / "packed", "int8")
    shapes = checkpoints.Parameters(tmp_path / "packed").shapes
    assert shapes == checkpoints.Parameters(tmp_path / "run").shapes
    arrays = checkpoints.Parameters(tmp_path / "packed").restore(shapes)
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    assert (np.abs(arrays["w"] - rows) <= largest / 127 * 0.501).all()
    for name, x in exact.items():
        np.testing.assert_array_equal(arrays[name], x)
    size = (tmp_path / "packed" / "parameters.safetensors").stat().st_size
    assert size < rows.nbytes


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda data: data[:-2], "SafetensorError"),
        (lambda data: data[:-2] + b"\0\0", "checksum of params.w"),
        (lambda data: data.replace(b'"checkpoint"', b'"checkpoinT"'), "no metadata"),
    ],
)
def test_a_damaged_packed_run(packed, damage, problem):
    path = packed[1][0] / "parameters.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(checkpoints.Damaged, match=problem):
        checkpoints.Parameters(packed[1][0]).restore(checkpoints.Parameters(packed[0][0]).shapes)


def test_what_cannot_be_packed(packed, tmp_path):
    with pytest.raises(UserError, match="holds only the trained part of a model; give --base"):
        checkpoints.pack(packed[0][1], tmp_path / "out")
    with pytest.raises(UserError, match="holds a whole model; give --base"):
        checkpoints.pack(packed[0][0], tmp_path / "out", base=packed[1][0])
    with pytest.raises(UserError, match=r"p1 was not packed from .*base.*, on which"):
        checkpoints.pack(packed[0][1], tmp_path / "out", base=packed[1][1])
    save(tmp_path / "large", {"w": jnp.full(3, 3.4e38)})
    with pytest.raises(UserError, match=r"params\.w holds 3\.4e\+38, too large for bfloat16"):
        checkpoints.pack(tmp_path / "large", tmp_path / "out", "bfloat16")
    save(tmp_path / "infinite", {"w": jnp.full((3, 2), jnp.inf)})
    with pytest.raises(UserError, match=r"params\.w holds inf, too large for int8"):
        checkpoints.pack(tmp_path / "infinite", tmp_path / "out", "int8")
