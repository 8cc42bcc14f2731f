"""All of SpeechGPT in minutes: a trained model answers a spoken question, then one is trained.

    make demo            (or: python -m speechgpt_jax.demo [--question=FILE] [--output_dir=DIR])

The shipped model answers a recorded question in speech. Then the three stages are trained from
scratch on the shipped corpus, the new model answers too, and a table compares the two. Ctrl-C
stops the training; called again, it resumes.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence

import rich
import rich.markup
from etils import epath
from rich.table import Table

from speechgpt_jax import arguments, gin_utils
from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.decoding.conversation import Conversation, Reply, SpeechModel
from speechgpt_jax.evaluation.evaluate import evaluate_run
from speechgpt_jax.evaluation.metrics import normalize, with_intervals
from speechgpt_jax.files import read_json
from speechgpt_jax.shipped import SHIPPED_MODEL, SHIPPED_VOICE
from speechgpt_jax.speech.audio import SAMPLE_RATE, check_output, load_audio, save_audio
from speechgpt_jax.speech.recordings import load_recording
from speechgpt_jax.training import lm
from speechgpt_jax.training.progress import draw_losses, duration_text, read_metrics

ANSWER = "answer.wav"
SHIPPED_ANSWER = "shipped_answer.wav"
STAGES = ("modality_adaptation", "cross_modal_instruction", "chain_of_modality")
# (stage, tasks, split, examples per task): about a minute in all.
EVALUATIONS = (
    (2, ("demo_asr", "demo_tts"), "test", 64),
    (2, ("demo_asr",), "unheard_voice", 64),
    (3, ("demo_speech_to_speech", "demo_text_to_text"), "test", 64),
)
# Shorter names of metrics, for a terminal of 80 columns.
METRICS = {
    "wer": "words wrong",
    "question_wer": "question's words wrong",
    "answer_accuracy": "answers right",
    "unit_error_rate": "units wrong",
    "form_error": "other form",
}
CLIPS = DEMO_CORPUS / "clips"
# A held-out question.
QUESTION = "question-06291-rms.flac"


def run_folder(output_dir: epath.Path, stage: int) -> str:
    """Folder of a stage's run."""
    return str(output_dir / f"stage{stage}")


def train_stage(output_dir: epath.Path, stage: int) -> None:
    """Trains one stage, starting from the previous one's run, or resumes it."""
    bindings = []
    if stage > 1:
        bindings = [f"lm.train.start_from = '{run_folder(output_dir, stage - 1)}'"]
    gin_utils.parse([f"gin/runs/demo_stage{stage}.gin"], bindings)
    gin_utils.call(
        lm.train, output_dir=run_folder(output_dir, stage), config_text=gin_utils.operative_config
    )


def losses(output_dir: epath.Path) -> Table:
    """Table of each stage's first and last losses, from its metrics."""
    table = Table(title="Loss in nats per token: mean of the first and of the last 10 steps")
    table.add_column("stage", no_wrap=True)
    for column in ("text before", "text after", "units before", "units after"):
        table.add_column(column, justify="right")
    for stage, name in enumerate(STAGES, 1):
        lines = read_metrics(run_folder(output_dir, stage))
        values = [
            # Modality adaptation has units only.
            f"{line[metric]:.2f}" if metric in line else "-"
            for metric in ("text_loss", "unit_loss")
            for line in (lines[0], lines[-1])
        ]
        table.add_row(f"{stage} {name}", *values)
    return table


def evaluation(output_dir: epath.Path) -> Table:
    """Evaluates the runs on held-out examples; returns their metrics beside the shipped model's."""
    trained: dict[str, dict] = {}
    for stage, tasks, split, num_examples in EVALUATIONS:
        run = run_folder(output_dir, stage)
        metrics = evaluate_run(
            run, tasks=tasks, split=split, num_examples=num_examples, output_dir=run
        )
        trained.setdefault(split, {}).update(metrics)
    return comparison(trained, read_json(epath.Path(SHIPPED_MODEL) / "evaluation.json"))


def comparison(trained: Mapping[str, Mapping], shipped: Mapping[str, Mapping]) -> Table:
    """Table of two models' metrics, {split: {task: {metric: value}}}, in at most 80 columns."""
    table = Table(title="On held-out examples, in % with 95 % intervals")
    table.add_column("task: figure", no_wrap=True)
    for column in ("trained now", "shipped model"):
        table.add_column(column, justify="right", no_wrap=True)
    for split, tasks in trained.items():
        for task, figures in tasks.items():
            shipped_figures = with_intervals(shipped[split][task])
            title = task.removeprefix("demo_") + ("" if split == "test" else f", {split}")
            table.add_section()
            table.add_row(f"[bold]{title.replace('_', ' ')}[/]")
            for name, text in with_intervals(figures).items():
                if name in METRICS:  # The others are controls.
                    table.add_row(f"  {METRICS[name]}", text, shipped_figures[name])
    return table


def recorded_question() -> dict:
    """The row of clips.json for `QUESTION`: its text and answer."""
    rows = json.loads((CLIPS / "clips.json").read_text())
    return next(row for row in rows if row["file"] == QUESTION)


def print_line(label: str, text: object) -> None:
    line = f"[bold]{label:<12}[/] {rich.markup.escape(str(text))}"
    rich.get_console().print(line, soft_wrap=True, highlight=False)


def ask(run: str, path: epath.Path, output: epath.Path) -> Reply:
    """Asks a run a recorded question, prints the reply and writes its sound."""
    model = SpeechModel.from_run(run, num_slots=1)
    conversation = Conversation(model, speaker=SHIPPED_VOICE)
    reply = conversation.answer(load_audio(path))
    print_line("Question", path)
    print_line("Transcript", reply.transcript or "(no words)")
    print_line("Answer", reply.text or "(no words)")
    print_line("As units", "".join(f"<{unit}>" for unit in reply.units) or "(none)")
    if reply.units:
        save_audio(output, reply.wav)
        print_line("As sound", f"{output}, {len(reply.wav) / SAMPLE_RATE:.1f} s")
    return reply


def verdict(reply: Reply, question: str, answer: str) -> str:
    """Compares the reply with the question's known text and answer."""
    is_recognised = normalize(reply.transcript) == normalize(question)
    is_right = normalize(reply.text) == normalize(answer)
    if is_recognised and is_right and reply.units:
        return "It understood the question, and the answer is right."
    problems = []
    if not is_recognised:
        problems.append(f"its transcript is wrong, the question was {question!r}")
    if not is_right:
        problems.append(f"its answer is wrong, the right one is {answer!r}")
    if not reply.units:
        problems.append("its reply has no speech")
    return (
        f"After this short training {', and '.join(problems)}. "
        "Train longer: raise lm.train.steps in gin/runs/demo_stage*.gin."
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument(
        "--question",
        type=arguments.existing_file,
        help="recording of a question; by default a held-out one of the demo corpus",
    )
    parser.add_argument(
        "--output_dir",
        type=arguments.output_folder,
        default="runs/demo",
        help="folder of the three runs, loss.png and answer.wav (default: runs/demo)",
    )
    args = parser.parse_args(argv)
    output_dir = epath.Path(args.output_dir)
    check_output(output_dir / ANSWER)
    if args.question:
        load_recording(args.question)  # Reports an unreadable file before the training.

    gin_utils.hush_libraries()
    start = time.monotonic()
    clip = recorded_question()
    question = epath.Path(args.question or CLIPS / clip["file"])
    rich.print("\n[bold]The shipped model[/]")
    ask(SHIPPED_MODEL, question, output_dir / SHIPPED_ANSWER)
    for stage, name in enumerate(STAGES, 1):
        rich.print(f"\n[bold]Stage {stage} of 3: {name}[/]")
        train_stage(output_dir, stage)
    runs = [run_folder(output_dir, stage) for stage in (1, 2, 3)]
    draw_losses(runs, output_dir / "loss.png")
    rich.print("\n[bold]Evaluation[/]")
    rich.print(losses(output_dir), evaluation(output_dir))
    reply = ask(runs[-1], question, output_dir / ANSWER)
    if not args.question:
        print(verdict(reply, clip["text"], clip["answer"]))
    print(f"Loss curves: {output_dir / 'loss.png'}.")
    print(f"The whole demo took {duration_text(time.monotonic() - start)}.")
    print(f"Talk on with the shipped model: {sys.executable} -m speechgpt_jax.chat")
    print(f"Or with the one that was trained now: add --run={runs[-1]}")


if __name__ == "__main__":
    arguments.run(main)
