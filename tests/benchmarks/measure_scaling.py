"""Held-out loss and word errors against parameters and tokens, and a fit, extrapolated.

    python -m tests.benchmarks.measure_scaling --steps=1000 --update_docs

Models of several sizes learn the demo's second stage from scratch at a constant learning rate, so
that one run gives the loss for many numbers of tokens. To them is fitted

    loss = E + A / parameters**a + B / tokens**b

(Hoffmann et al. 2022, approach 3: Huber loss of the logarithms). The largest model has no part in
the fit: its extrapolation stands beside what was measured. The runs resume, so an
interrupted command can be given again; runs that are done are only read.
"""

import dataclasses
import pathlib

import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
import scipy.special

import tasks  # noqa: F401 (registers them)
from speechgpt_jax import arguments
from speechgpt_jax.evaluation.evaluate import evaluate_run
from speechgpt_jax.evaluation.metrics import with_intervals
from speechgpt_jax.training.progress import read_metrics
from tests.benchmarks import docs_table, training_runs

PLOT = docs_table.ROOT / "speechgpt_jax/demo_world/scaling.png"
HEAD_DIM = 32
VOCABULARY = 1706
EVALUATE_EVERY = 50
# Points before the loss has left the first plateau say nothing about its later course.
FIRST_STEP = 150


@dataclasses.dataclass(frozen=True)
class Size:
    """A LLaMA's width and depth."""

    hidden: int
    layers: int

    @property
    def intermediate(self) -> int:
        return 8 * round(self.hidden / 3)

    @property
    def parameters(self) -> int:
        """All parameters, those of the vocabulary included."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + 2 * VOCABULARY * self.hidden + self.hidden

    @property
    def settings(self) -> dict[str, int | float]:
        """Bindings that differ from gin/runs/demo_stage2.gin; wide models need smaller steps."""
        config = "llama.LlamaConfig"
        return {
            f"{config}.hidden_size": self.hidden,
            f"{config}.intermediate_size": self.intermediate,
            f"{config}.num_layers": self.layers,
            f"{config}.head_dim": HEAD_DIM,
            f"{config}.num_heads": self.hidden // HEAD_DIM,
            f"{config}.num_kv_heads": self.hidden // HEAD_DIM,
            "optimizer.AdamW.learning_rate": round(2e-3 * (256 / self.hidden) ** 0.5, 6),
        }


# In ascending order; the fit is extrapolated to the last one.
SIZES = (Size(96, 2), Size(160, 3), Size(256, 4), Size(448, 6))


@dataclasses.dataclass(frozen=True)
class Law:
    """Loss in nats per token: irreducible + parameter_scale / N**alpha + token_scale / D**beta."""

    irreducible: float
    parameter_scale: float
    alpha: float
    token_scale: float
    beta: float

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return (
            self.irreducible
            + self.parameter_scale / parameters**self.alpha
            + self.token_scale / tokens**self.beta
        )


def fit(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Law:
    """The law of the points, each float [points], from the best of many starts."""

    def error(x: np.ndarray) -> float:
        e, log_a, alpha, log_b, beta = x
        terms = [
            np.full_like(losses, e),
            log_a - alpha * np.log(parameters),
            log_b - beta * np.log(tokens),
        ]
        difference = scipy.special.logsumexp(terms, axis=0) - np.log(losses)
        return scipy.special.huber(1e-3, difference).sum()

    starts = [
        (e, a, alpha, b, beta)
        for e in (-1.0, 0.5)
        for a in (1.0, 5.0)
        for alpha in (0.2, 0.6)
        for b in (2.0, 6.0)
        for beta in (0.2, 0.6)
    ]
    found = [scipy.optimize.minimize(error, start, method="L-BFGS-B") for start in starts]
    e, log_a, alpha, log_b, beta = min(found, key=lambda result: result.fun).x
    return Law(np.exp(e), np.exp(log_a), alpha, np.exp(log_b), beta)


def train(size: Size, run: pathlib.Path, steps: int) -> None:
    held_out = "inputs.load_host_held_out"
    settings = {
        **size.settings,
        "optimizer.AdamW.schedule": "constant",
        "lm.train.start_from": None,
        "inputs.load_host_batches.mixture": "demo_cross_modal_instruction",
        "lm.train.steps": steps,
        "lm.train.held_out": f"[@{held_out}()]",
        "lm.train.evaluate_every": EVALUATE_EVERY,
        f"{held_out}.mixture": "demo_cross_modal_instruction",
        f"{held_out}.batch_size": 4,
        f"{held_out}.sequence_length": 256,
        f"{held_out}.num_batches": 24,
    }
    training_runs.train("gin/runs/demo_stage2.gin", run, settings)


def curve(run: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens seen and held-out loss at each evaluation, float [evaluations]."""
    tokens = 0.0
    points, last_step = [], 0
    for row in read_metrics(run):
        if "tokens" in row:
            tokens += row["tokens"] * (row["step"] - last_step)
            last_step = row["step"]
        if "test/loss" in row and row["step"] >= FIRST_STEP:
            points.append((tokens, row["test/loss"]))
    seen, losses = np.array(points).T
    return seen, losses


def plot(curves: list, law: Law, word_error_rates: list[float]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for size, (tokens, losses) in zip(SIZES, curves, strict=True):
        extrapolated = size == SIZES[-1]
        label = f"{size.parameters / 1e6:.1f} M" + (", extrapolated" if extrapolated else "")
        (dots,) = left.plot(tokens, losses, "o", markersize=3, label=label)
        law_losses = law.loss(np.full_like(tokens, size.parameters), tokens)
        left.plot(tokens, law_losses, "--" if extrapolated else "-", color=dots.get_color())
    left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="held-out loss, nats per token")
    left.legend(title="parameters; lines: the fit")
    right.plot([s.parameters for s in SIZES], [100 * w for w in word_error_rates], "o-")
    right.set(xscale="log", xlabel="parameters", ylabel="ASR word error rate, %", ylim=(0, None))
    figure.savefig(PLOT, dpi=100)


def main(argv: list[str]) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--runs", default="runs/scaling", help="folder of the runs")
    parser.add_argument("--steps", type=arguments.positive_int, default=1000)
    parser.add_argument(
        "--examples", type=arguments.positive_int, default=64, help="examples of the WER"
    )
    docs_table.add_argument(parser)
    args = parser.parse_args(argv)
    curves, rates, intervals = [], [], []
    for size in SIZES:
        run = pathlib.Path(args.runs) / f"{size.hidden}x{size.layers}"
        train(size, run, args.steps)
        curves.append(curve(run))
        metrics = evaluate_run(run, tasks=["demo_asr"], num_examples=args.examples)["demo_asr"]
        rates.append(metrics["wer"])
        intervals.append(with_intervals(metrics)["wer"])
    known = [
        (np.full_like(tokens, size.parameters), tokens, losses)
        for size, (tokens, losses) in zip(SIZES[:-1], curves)
    ]
    law = fit(*(np.concatenate(column) for column in zip(*known)))
    table = docs_table.Table(
        "scaling", ["parameters", "tokens", "held-out loss", "by the fit", "ASR WER"]
    )
    for size, (tokens, losses), interval in zip(SIZES, curves, intervals, strict=True):
        last = law.loss(np.array(size.parameters), tokens[-1])
        note = " (extrapolated)" if size == SIZES[-1] else ""
        table.add(
            f"{size.parameters / 1e6:.1f} M",
            f"{tokens[-1] / 1e6:.2f} M",
            f"{losses[-1]:.3f}",
            f"{last:.3f}{note}",
            interval,
        )
    formula = docs_table.Table("scaling_law", ["E", "A", "a", "B", "b"])
    formula.add(*(f"{value:.3g}" for value in dataclasses.astuple(law)))
    if args.update_docs:
        plot(curves, law, rates)
        table.update_docs()
        formula.update_docs()


if __name__ == "__main__":
    arguments.run(main)
