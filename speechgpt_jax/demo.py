"""The whole road in minutes: trains three stages on speech, then answers a spoken question aloud.

    make demo            (or: python -m speechgpt_jax.demo [--question=FILE] [--output_dir=DIR])

Trains from scratch on the embedded corpus. Ctrl-C stops it; called again, it goes on where it was.
"""

import argparse
import json
import pathlib
import time

import rich
import rich.markup
from rich.table import Table

from speechgpt_jax import gin_utils
from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.decoding.conversation import Conversation, Reply
from speechgpt_jax.errors import one_line_errors
from speechgpt_jax.evaluation.evaluate import evaluate_run
from speechgpt_jax.evaluation.metrics import normalize
from speechgpt_jax.speech.audio import check_output, load_audio, save_audio
from speechgpt_jax.training import lm
from speechgpt_jax.training.progress import draw_losses, duration_text, read_metrics

OUTPUT_DIR = pathlib.Path("runs/demo")
ANSWER = "answer.wav"
STAGES = ("modality_adaptation", "cross_modal_instruction", "chain_of_modality")
# (stage, tasks, split, examples of each): enough to tell, and done in a minute.
EVALUATIONS = (
    (2, ("demo_asr", "demo_tts"), "test", 64),
    (2, ("demo_asr",), "unheard_voice", 64),
    (3, ("demo_speech_to_speech", "demo_text_to_text"), "test", 64),
)
CLIPS = DEMO_CORPUS / "clips"
# Held out; whoever hears it has the answer: the place and the weather.
QUESTION = "question-06244-rms.flac"


def run_of(output_dir: pathlib.Path, stage: int) -> str:
    return str(output_dir / f"stage{stage}")


def train_stage(output_dir: pathlib.Path, stage: int) -> None:
    """Trains one stage from the one before, or goes on with it."""
    bindings = []
    if stage > 1:
        bindings = [f"lm.train.start_from = '{run_of(output_dir, stage - 1)}'"]
    gin_utils.parse([f"gin/runs/demo_stage{stage}.gin"], bindings)
    gin_utils.call(
        lm.train, output_dir=run_of(output_dir, stage), config_text=gin_utils.operative_config
    )


def losses(output_dir: pathlib.Path) -> Table:
    table = Table(title="Loss, nats a token: mean of the first and of the last 10 steps")
    table.add_column("stage", no_wrap=True)
    for column in ("text before", "text after", "units before", "units after"):
        table.add_column(column, justify="right")
    for stage, name in enumerate(STAGES, 1):
        lines = read_metrics(run_of(output_dir, stage))
        values = [
            # A stage of units alone has no text to lose on.
            f"{line[metric]:.2f}" if metric in line else "-"
            for metric in ("text_loss", "unit_loss")
            for line in (lines[0], lines[-1])
        ]
        table.add_row(f"{stage} {name}", *values)
    return table


def evaluation(output_dir: pathlib.Path) -> Table:
    table = Table(title="Held-out examples, 64 a row: error rates and accuracies")
    for column in ("task", "split", "figure"):
        table.add_column(column)
    table.add_column("value", justify="right")
    for stage, tasks, split, num_examples in EVALUATIONS:
        metrics = evaluate_run(
            run_of(output_dir, stage), tasks=tasks, split=split, num_examples=num_examples
        )
        for task, figures in metrics.items():
            for name, value in figures.items():
                table.add_row(task, split, name.replace("_", " "), f"{value:.1%}")
    return table


def recorded_question() -> dict:
    """The row of clips.json about `QUESTION`."""
    rows = json.loads((CLIPS / "clips.json").read_text())
    return next(row for row in rows if row["file"] == QUESTION)


def say(label: str, text: object) -> None:
    line = f"[bold]{label:<10}[/] {rich.markup.escape(str(text))}"
    rich.get_console().print(line, soft_wrap=True, highlight=False)


def ask(output_dir: pathlib.Path, path: pathlib.Path) -> Reply:
    """Asks the last stage and writes answer.wav."""
    conversation = Conversation.from_run(run_of(output_dir, 3), speaker="slt")
    reply = conversation.answer(load_audio(path))
    say("Question", path)
    say("It heard", reply.transcript or "(nothing)")
    say("It answers", reply.text or "(nothing)")
    say("In units", "".join(f"<{unit}>" for unit in reply.units) or "(none)")
    if reply.units:
        save_audio(output_dir / ANSWER, reply.wav)
        say("As sound", f"{output_dir / ANSWER}, {len(reply.wav) / 16_000:.1f} s")
    return reply


def verdict(reply: Reply, question: str, answer: str) -> str:
    """What is right and what is not, for a question whose answer is known."""
    heard = normalize(reply.transcript) == normalize(question)
    answered = normalize(reply.text) == normalize(answer)
    if heard and answered and reply.units:
        return "Heard and answered rightly."
    problems = []
    if not heard:
        problems.append(f"it misheard: the question was {question!r}")
    if not answered:
        problems.append(f"its answer is wrong: right is {answer!r}")
    if not reply.units:
        problems.append("it said nothing aloud")
    return (
        f"After so short a training {', and '.join(problems)}. "
        "Train longer: raise lm.train.steps in gin/runs/demo_stage*.gin."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--question", type=pathlib.Path, help="a recording to ask instead")
    parser.add_argument("--output_dir", type=pathlib.Path, default=OUTPUT_DIR)
    args = parser.parse_args()
    check_output(args.output_dir / ANSWER)
    if args.question:
        load_audio(args.question)  # A bad file is better known before than after training.

    gin_utils.hush_libraries()
    start = time.monotonic()
    for stage, name in enumerate(STAGES, 1):
        rich.print(f"\n[bold]Stage {stage} of 3: {name}[/]")
        train_stage(args.output_dir, stage)
    runs = [run_of(args.output_dir, stage) for stage in (1, 2, 3)]
    draw_losses(runs, args.output_dir / "loss.png")
    rich.print("\n[bold]Evaluation[/]")
    rich.print(losses(args.output_dir), evaluation(args.output_dir))
    if args.question:
        ask(args.output_dir, args.question)
    else:
        clip = recorded_question()
        reply = ask(args.output_dir, CLIPS / clip["file"])
        print(verdict(reply, clip["text"], clip["answer"]))
    print(
        f"Curves: {args.output_dir / 'loss.png'}. All in {duration_text(time.monotonic() - start)}."
    )
    print(f"Ask more: python -m speechgpt_jax.infer --run={runs[-1]} --audio=FILE")


if __name__ == "__main__":
    with one_line_errors():
        main()
