"""The loop on a one-line model: going on, stopping, reporting."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechgpt_jax.checkpoints import Checkpoints
from speechgpt_jax.training.loop import fit
from speechgpt_jax.training.progress import draw_losses, duration_text, read_metrics


class Numbers:
    """Random batches; the position is how many were given."""

    def __init__(self, before=lambda count: None):
        self.count, self.before = 0, before

    def __next__(self):
        self.before(self.count)
        self.count += 1
        return {"x": np.random.default_rng(self.count).normal(size=4).astype(np.float32)}

    def state(self):
        return json.dumps(self.count).encode()

    def restore(self, position):
        self.count = json.loads(position)


@jax.jit
def train_step(state, batch):
    loss = jnp.sum((state["w"] - batch["x"]) ** 2)
    w = state["w"] - 0.1 * (state["w"] - batch["x"])
    return {"w": w}, {"loss": (2 * loss, 2.0), "tokens": jnp.float32(4)}


def run(folder, steps, batches=None, **kwargs):
    checkpoints = Checkpoints(folder)
    try:
        return fit(
            {"w": jnp.zeros(4)},
            train_step,
            batches or Numbers(),
            steps=steps,
            checkpoints=checkpoints,
            output_dir=folder,
            log_every=2,
            **kwargs,
        )
    finally:
        checkpoints.close()


def test_going_on_equals_never_stopping(tmp_path):
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


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(tmp_path, stop, code):
    def kill_at_six(count):
        if count == 5:
            os.kill(os.getpid(), stop)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "stopped", 20, Numbers(kill_at_six))
    assert stopped.value.code == code
    assert Checkpoints(tmp_path / "stopped").latest_step() == 6
    gone_on = run(tmp_path / "stopped", 9)
    np.testing.assert_array_equal(gone_on["w"], run(tmp_path / "whole", 9)["w"])


def test_nan_names_the_step_and_is_not_saved(tmp_path):
    class Poisoned(Numbers):
        def __next__(self):
            batch = super().__next__()
            return {"x": batch["x"] * np.float32("nan")} if self.count == 6 else batch

    with pytest.raises(FloatingPointError, match="step 6: loss"):
        run(tmp_path, 20, Poisoned(), save_every=3)
    assert Checkpoints(tmp_path).latest_step() == 3


def test_input_that_ends_is_named(tmp_path):
    class Short(Numbers):
        def __next__(self):
            if self.count == 3:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="ended after 3 of 9 steps"):
        run(tmp_path, 9, Short())


def test_metrics_of_steps_taken_again_are_dropped(tmp_path):
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
    assert "tokens/s" in lines[-1] and "left" in lines[-1]


def test_duration_text():
    assert [duration_text(s) for s in (0.4, 75.2, 3675)] == ["0:00", "1:15", "1:01:15"]
