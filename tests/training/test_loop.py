"""The training loop with a model of one vector: resuming, stopping, reporting."""

import json
import os
import re
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from prometheus_client.parser import text_string_to_metric_families

from speechgpt_jax.checkpoints import Checkpoints, Keep
from speechgpt_jax.errors import UserError
from speechgpt_jax.training import loop
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.optimizer import Guard, guarded
from speechgpt_jax.training.phases import INPUT, Phases
from speechgpt_jax.training.progress import draw_losses, duration_text, read_metrics
from speechgpt_jax.training.review import REJECTED
from speechgpt_jax.training.weights_and_biases import WandbRun


class Numbers:
    """Random batches; the position is the number of batches so far."""

    position_names = ("count",)

    def __init__(self, before=lambda count: None):
        self.count, self.before = 0, before

    def __next__(self):
        self.before(self.count)
        self.count += 1
        return {"x": np.random.default_rng(self.count).normal(size=4).astype(np.float32)}

    def state(self):
        return {"count": json.dumps(self.count).encode()}

    def restore(self, positions):
        self.count = json.loads(positions["count"])


@jax.jit
def train_step(state, batch):
    loss = jnp.sum((state["w"] - batch["x"]) ** 2)
    w = state["w"] - 0.1 * (state["w"] - batch["x"])
    return {"w": w}, {"loss": (2 * loss, 2.0), "tokens": jnp.float32(4)}


TX = guarded(optax.sgd(0.1), Guard(spike=3.0))


@jax.jit
def guarded_step(state, batch):
    def loss_fn(w):
        return jnp.sum((w - batch["x"]) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state["w"])
    updates, opt = TX.update(grads, state["opt"], value=loss)
    metrics = {"loss": (loss, 1.0), "tokens": jnp.float32(4), REJECTED: opt.rejected}
    return {"w": state["w"] + updates, "opt": opt}, metrics


def run(folder, steps, batches=None, state=None, step=train_step, keep=Keep(), **kwargs):  # noqa: B008 (frozen)
    checkpoints = Checkpoints(folder, keep)
    try:
        return fit(
            state or {"w": jnp.zeros(4)},
            step,
            batches or Numbers(),
            steps=steps,
            checkpoints=checkpoints,
            output_dir=folder,
            log_every=2,
            **{"save_every": 1000} | kwargs,
        )
    finally:
        checkpoints.close()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 4)
    parts = run(tmp_path / "parts", 9)
    np.testing.assert_array_equal(whole["w"], parts["w"])
    losses = [
        [(line["step"], line["loss"]) for line in read_metrics(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [2, 4, 6, 8, 9]


def test_resuming_needs_no_memory_for_two_states(tmp_path, monkeypatch):
    """The arrays of the initial state are gone before those of the checkpoint are read."""
    restore_latest, calls = Checkpoints.restore_latest, []

    def restore(self, targets, names):
        calls.append(start["w"].is_deleted())
        return restore_latest(self, targets, names)

    monkeypatch.setattr(Checkpoints, "restore_latest", restore)
    start = {"w": jnp.zeros(4)}
    run(tmp_path, 2, state=start)
    assert not calls and not start["w"].is_deleted()
    run(tmp_path, 4, state=start)
    assert calls == [True]


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(tmp_path, stop, code):
    def kill_at_six(count):
        if count == 5:
            os.kill(os.getpid(), stop)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", 20, Numbers(kill_at_six))
    assert stopped.value.code == code
    assert Checkpoints(tmp_path / "stopped").latest_step() == 6
    resumed = run(tmp_path / "stopped", 9)
    np.testing.assert_array_equal(resumed["w"], run(tmp_path / "whole", 9)["w"])


def test_nan_names_the_step_and_is_not_saved(tmp_path):
    class Poisoned(Numbers):
        def __next__(self):
            batch = super().__next__()
            return {"x": batch["x"] * np.float32("nan")} if self.count == 6 else batch

    with pytest.raises(UserError, match=r"step 6: loss not finite; .*/step_6.npz"):
        run(tmp_path, 20, Poisoned(), save_every=3)
    assert Checkpoints(tmp_path).latest_step() == 3
    assert np.isnan(np.load(tmp_path / "rejected" / "step_6.npz")["x"]).all()


class Spoilt(Numbers):
    """Batch 6 is an outlier, batch 7 is not finite."""

    def __next__(self):
        factor = np.float32({6: 100, 7: np.inf}.get(self.count + 1, 1))
        return {key: factor * x for key, x in super().__next__().items()}


def test_rejected_batches_change_nothing_and_are_saved(tmp_path, capsys):
    class Without(Numbers):
        def __next__(self):
            self.count += 2 * (self.count == 5)
            return super().__next__()

    start = {"w": jnp.zeros(4), "opt": TX.init(jnp.zeros(4))}
    spoilt = run(tmp_path / "spoilt", 12, Spoilt(), start, guarded_step, patience=2)
    without = run(tmp_path / "without", 10, Without(), start, guarded_step)
    np.testing.assert_array_equal(spoilt["w"], without["w"])
    out = capsys.readouterr().out
    assert "step 6: loss" in out and "far above its running mean; skipped" in out
    assert "step 7: loss not finite; skipped. Its batch is in" in out
    kept = np.load(tmp_path / "spoilt" / "rejected" / "step_6.npz")["x"]
    np.testing.assert_array_equal(kept, 100 * np.random.default_rng(6).normal(size=4).astype("f"))
    assert all(np.isfinite(line["loss"]) for line in read_metrics(tmp_path / "spoilt"))


def test_out_of_patience(tmp_path):
    start = {"w": jnp.zeros(4), "opt": TX.init(jnp.zeros(4))}
    with pytest.raises(UserError, match="step 7: loss not finite"):
        run(tmp_path, 12, Spoilt(), start, guarded_step, patience=1)


def test_mfu_is_the_share_of_the_peak(tmp_path, capsys):
    def step(state, batch):
        state, metrics = train_step(state, batch)
        return state, metrics | {"model_flops": 50 * metrics["tokens"]}

    run(tmp_path, 4, step=step, peak_flops=1e3)
    assert re.search(r"tokens/s  MFU \d+%  0:00 left", capsys.readouterr().out)
    line = read_metrics(tmp_path)[-1]
    np.testing.assert_allclose(line["mfu"], 50 * line["tokens_per_second"] / 1e3, rtol=1e-6)


def test_a_run_of_two_steps_reports_what_the_second_took(tmp_path):
    def step(state, batch):
        time.sleep(0.05)  # A device that works while the host waits.
        return train_step(state, batch)

    run(tmp_path, 2, step=step)
    (line,) = read_metrics(tmp_path)
    assert line["seconds_per_step"] >= 0.05


@pytest.mark.parametrize("is_computed", [True, False])
def test_a_batch_that_comes_during_a_step_was_not_waited_for(tmp_path, monkeypatch, is_computed):
    monkeypatch.setattr(loop, "is_computed", lambda metrics: is_computed)
    phases = Phases()
    run(tmp_path, 3, phases=phases)
    assert (INPUT in phases.shares()) == is_computed


def test_metrics_of_a_running_step_are_not_computed():
    finished = jnp.zeros(2).block_until_ready()
    running = types.SimpleNamespace(is_ready=lambda: False)
    assert loop.is_computed({"loss": (finished, 1.0), "tokens": np.zeros(2)})
    assert not loop.is_computed({"loss": (finished, running)})


@pytest.mark.slow
def test_profile(tmp_path):
    run(tmp_path, 4, profile_steps=(2, 3))
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))
    with pytest.raises(
        ValueError, match=r"profile_steps \(4, 5\) must be steps of this run: 5 to 6"
    ):
        run(tmp_path, 6, profile_steps=(4, 5))


def test_input_that_ends_is_reported(tmp_path):
    class Short(Numbers):
        def __next__(self):
            if self.count == 3:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="ended after 3 of 9 steps"):
        run(tmp_path, 9, Short())


def test_metrics_of_repeated_steps_are_dropped(tmp_path):
    run(tmp_path, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 99.0}\n{"step": 8, "lo')
    run(tmp_path, 8)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(line["loss"] < 99 for line in lines)


def test_losses_are_drawn(tmp_path):
    run(tmp_path, 4)
    draw_losses([tmp_path, tmp_path], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    run(tmp_path, 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 2/4  loss ")
    assert "tokens/s" in lines[-2] and "left" in lines[-2]
    assert re.match(r"Steps 1 to 4 in 0:\d\d: \w+ \d+\.\d%, ", lines[-1])
    run(tmp_path, 4)
    assert "All 4 steps are done; nothing is left to train." in capsys.readouterr().out


def test_the_shares_of_all_phases_add_up(tmp_path, capsys):
    def evaluate(state):
        time.sleep(0.02)
        return {"test/loss": 1.0}

    run(tmp_path, 6, evaluate=evaluate, evaluate_every=3, save_every=2)
    names = {"goodput", "input_wait"} | {
        f"{phase}_share" for phase in ("start", "restore", "compile", "evaluate", "save")
    }
    lines = [line for line in read_metrics(tmp_path) if "goodput" in line]
    assert names <= lines[-1].keys()
    for line in lines:
        shares = [line.get(name, 0.0) for name in names]
        assert min(shares) >= 0 and sum(shares) == pytest.approx(1)
    assert lines[-1]["evaluate_share"] > 0 and lines[-1]["save_share"] > 0
    summary = capsys.readouterr().out.splitlines()[-1]
    percents = dict(re.findall(r"(\w+) (\d+\.\d)%", summary))
    assert {"step", "start", "restore", "compile", "evaluate", "save"} <= percents.keys()
    # Each is rounded.
    assert sum(map(float, percents.values())) == pytest.approx(100, abs=0.05 * len(percents) + 0.01)


def test_prometheus_reads_the_newest_metrics(tmp_path):
    folder, file = tmp_path / 'a "b"', tmp_path / "run.prom"
    scores = {"test/loss": 2.5}
    run(folder, 4, prometheus_file=file, evaluate=lambda state: scores, evaluate_every=2)
    families = {x.name: x for x in text_string_to_metric_families(file.read_text())}
    newest = {name: x for line in read_metrics(folder) for name, x in line.items()}
    assert len(families) == len(newest)
    for name, value in newest.items():
        family = families[f"speechgpt_{name.replace('/', '_')}"]
        [sample] = family.samples
        assert (family.type, sample.labels) == ("gauge", {"run": 'a "b"'})
        assert family.documentation == f"Newest {name} of a training run."
        assert sample.value == pytest.approx(value)


@pytest.mark.slow
def test_weights_and_biases_end_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    codes = []

    def start_wandb():
        started = WandbRun("project", tmp_path, {})
        monkeypatch.setattr(started._run, "log", lambda values, step: {}["network"])
        monkeypatch.setattr(started._run, "finish", lambda exit_code: codes.append(exit_code))
        return started

    def fail(count):
        if count == 3:
            raise UserError("no more")

    run(tmp_path / "run", 4, start_wandb=start_wandb)
    assert caplog.text.count("Weights & Biases: 'network'") == 2
    with pytest.raises(UserError, match="no more"):
        run(tmp_path / "failed", 4, Numbers(fail), start_wandb=start_wandb)
    assert codes == [0, 1]

    run(tmp_path / "run", 6, start_wandb=lambda: WandbRun("a/b", tmp_path, {}))
    assert "Weights & Biases: Invalid project name 'a/b'" in caplog.text


def test_saves_by_time(tmp_path, monkeypatch):
    """A batch a minute; the clock is read at steps that are logged, every second one."""
    batches = Numbers()
    clock = types.SimpleNamespace(monotonic=lambda: 60 * batches.count)
    monkeypatch.setattr(loop, "time", clock)
    run(tmp_path, 9, batches, keep=Keep(last=9), save_minutes=3)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [4, 8, 9]


def test_metrics_that_cannot_be_written_end_no_run(tmp_path, caplog):
    files = [tmp_path / "run" / "metrics.jsonl", tmp_path / "run.prom"]

    def spoil(count):
        if count == 3:
            for file in files:
                file.unlink()
                file.mkdir()

    state = run(tmp_path / "run", 8, Numbers(spoil), prometheus_file=files[1])
    np.testing.assert_array_equal(state["w"], run(tmp_path / "whole", 8)["w"])
    assert Checkpoints(tmp_path / "run").latest_step() == 8
    for file in files:
        assert f"{file} can't be written: " in caplog.text


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints"])
def test_what_is_in_the_way_of_a_run_is_named(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name.endswith(".jsonl") else path.write_text("")
    with pytest.raises(UserError, match=rf"{name} is not a f.*: remove it, or name another output"):
        run(tmp_path, 1)


def test_duration_text():
    assert [duration_text(s) for s in (0.4, 75.2, 3675)] == ["0:00", "1:15", "1:01:15"]
