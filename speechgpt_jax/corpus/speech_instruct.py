"""SpeechInstruct from recordings with units, and from dialogues: training data of all three stages.

    modality_adaptation        unit text, one recording per line
    cross_modal_instruction    units -> text and text -> units, under one of 100 descriptions
    chain_of_modality          the four forms of a dialogue (`corpus.dialogues`)

tools/build_speech_instruct.py is the command.
"""

import dataclasses
import functools
import hashlib
import random
from collections.abc import Sequence

from etils import epath

from speechgpt_jax import checkpoints, files, prompts
from speechgpt_jax.corpus import plan, shards, text_to_speech
from speechgpt_jax.corpus.beam_files import (
    FileSystems,
    absolute,
    find_files,
    read_lines,
    read_table,
)
from speechgpt_jax.corpus.dialogues import (
    CHAIN_FORMS,
    CommandSynthesizer,
    DialogueWriter,
    ModelSynthesizer,
)
from speechgpt_jax.corpus.extract_units import Extractor, check_hubert
from speechgpt_jax.corpus.records import one_line, reason_against, record, rejected
from speechgpt_jax.corpus.summary import REJECTS, print_summary
from speechgpt_jax.data import descriptions
from speechgpt_jax.errors import UserError
from speechgpt_jax.manifests import check_fields
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.unit_text import units_in, units_to_text


@dataclasses.dataclass(frozen=True)
class DialogueSettings:
    """Settings on which the output of `chain_of_modality` depends.

    Attributes:
      tts: text-to-speech command with {speaker}, {text} and {wav}; None if `text_to_unit` is given.
      text_to_unit: folder of a run that writes units, in place of `tts` and `hubert`; or None.
      hubert: folder of the HuBERT and centroids that encode the sound of `tts`.
      question_voices: values of {speaker} for questions, one of them drawn for each.
      answer_voice: value of {speaker} for all answers.
      prefix: the system prompt.
      max_answer_words: dialogues with longer answers are rejected.
      max_new_tokens: limit of `text_to_unit`; dialogues with longer speech are rejected.
    """

    tts: str | None
    text_to_unit: str | None
    hubert: str
    question_voices: Sequence[str]
    answer_voice: str
    prefix: str
    max_answer_words: int
    max_new_tokens: int

    def make_writer(self) -> DialogueWriter:
        """Loads the models that synthesize and encode; called in each worker."""
        if self.tts:
            extractor = Extractor.from_pretrained(self.hubert, batch_seconds=32)
            synthesizer = CommandSynthesizer(self.tts, extractor)
        else:
            assert self.text_to_unit, "one of tts and text_to_unit is given"
            synthesizer = ModelSynthesizer.from_run(self.text_to_unit, self.max_new_tokens)
        return DialogueWriter(
            synthesizer, self.question_voices, self.answer_voice, self.prefix, self.max_answer_words
        )


def modality_adaptation(units: str, output: str, beam_arguments: Sequence[str] = ()) -> None:
    """Writes OUTPUT/units-*.txt from `units`, the output folder of `extract_units`.

    Raises:
      UserError: `units` is not finished, or Beam doesn't know a flag.
    """
    job = shards.Job("modality_adaptation", ("units",), lambda: write_units, count_units, "txt")
    _run_on_units(job, units, output, {}, beam_arguments)


def cross_modal_instruction(
    units: str, output: str, prefix: str, beam_arguments: Sequence[str] = ()
) -> None:
    """Writes OUTPUT/asr-*.jsonl and tts-*.jsonl from `units`, the output of `extract_units`.

    Raises:
      UserError: `units` is not finished, or Beam doesn't know a flag.
    """
    write = functools.partial(write_pairs, prefix=prefix)
    job = shards.Job("cross_modal_instruction", ("asr", "tts"), lambda: write, count_units)
    _run_on_units(job, units, output, {"prefix": prefix}, beam_arguments)


def chain_of_modality(
    dialogues: str,
    output: str,
    settings: DialogueSettings,
    shard_size: int,
    beam_arguments: Sequence[str] = (),
) -> None:
    """Writes OUTPUT/FORM-*.jsonl for each FORM of CHAIN_FORMS.

    Args:
      dialogues: JSONL, TSV or CSV file with a `question` and an `answer` per row.
      output: folder; what an earlier run finished there is kept.
      settings: synthesis and limits of the dialogues.
      shard_size: dialogues per shard.
      beam_arguments: Beam's own flags.

    Raises:
      UserError: the settings contradict one another, there is no model, command or table that they
        name, or Beam doesn't know a flag.
    """
    if bool(settings.tts) == bool(settings.text_to_unit):
        raise UserError("chain_of_modality needs either --tts or --text_to_unit.")
    options = shards.pipeline_options(beam_arguments)
    output = absolute(output)
    files.check_writable_folder(output)
    settings = dataclasses.replace(
        settings,
        hubert=absolute(settings.hubert),
        text_to_unit=settings.text_to_unit and absolute(settings.text_to_unit),
        question_voices=list(settings.question_voices),
    )
    if settings.tts:
        text_to_speech.check_command(settings.tts)
        check_hubert(settings.hubert)
    elif settings.text_to_unit:
        _check_text_to_unit(settings.text_to_unit)
    dialogues = absolute(dialogues)
    rows = (row.fields for row in read_table(dialogues, ("question", "answer")))
    work = plan.write_plan(rows, dialogues, output, shard_size, dataclasses.asdict(settings))
    job = shards.Job("chain_of_modality", tuple(CHAIN_FORMS), settings.make_writer, count_units)
    print_summary(shards.run(job, work, output, options), output)


def _check_text_to_unit(run: str) -> None:
    """Raises a UserError if a folder is no run of a model that writes units."""
    if not epath.Path(run).is_dir():
        raise UserError(f"--text_to_unit={run}: there is no such folder.")
    checkpoints.latest(run)
    if not Tokenizer.from_pretrained(f"{run}/tokenizer").unit_ids:
        raise UserError(f"--text_to_unit={run}: its tokenizer has no units; name another run.")


def _run_on_units(
    job: shards.Job, units: str, output: str, settings: dict, beam_arguments: Sequence[str]
) -> None:
    options = shards.pipeline_options(beam_arguments)
    output = absolute(output)
    files.check_writable_folder(output)
    unit_files = _unit_files(absolute(units))
    settings = settings | {"step": job.name, "files": unit_files} | _made_with(absolute(units))
    files.refuse_foreign(output, plan.PLAN, "summary.tsv")
    files.keep_settings(epath.Path(output) / plan.PLAN, settings)
    work = [plan.Shard(file, i, len(unit_files)) for i, file in enumerate(unit_files)]
    print_summary(shards.run(job, work, output, options), output)


def _unit_files(folder: str) -> list[str]:
    """The finished shards that `extract_units` wrote."""
    found = find_files(folder, "units-*-of-*.jsonl")
    if not found or len(found) != plan.number_of_shards(found[0]):
        raise UserError(
            f"--units={folder} has {len(found)} finished shards, expected all of the run; let "
            "tools.extract_units finish."
        )
    return found


def _made_with(folder: str) -> dict[str, str]:
    """Digest of the plan of `extract_units`: the same files may be made again from other sound."""
    path = FileSystems.join(folder, plan.PLAN)
    if not FileSystems.exists(path):
        return {}
    return {"units": hashlib.sha256("\n".join(read_lines(path)).encode()).hexdigest()}


def write_units(rows: list[dict]) -> dict[str, list[str]]:
    """Rows with `units` -> a line of unit text for each."""
    return {"units": [units_to_text(_units(row)) for row in rows], REJECTS: []}


def write_pairs(rows: list[dict], prefix: str) -> dict[str, list[str]]:
    """Rows with `units` and `text` -> records of speech recognition and of speech synthesis."""
    lines = {"asr": [], "tts": [], REJECTS: []}
    for row in rows:
        reason = reason_against(row.get("text"))
        if reason:
            lines[REJECTS].append(rejected(row, reason))
            continue
        text, units = one_line(row["text"]), units_to_text(_units(row))
        # The same description for the same recording in every run.
        check_fields([row], ("path",))
        rng = random.Random(row["path"])
        for kind, options, source, target in (
            ("asr", descriptions.ASR, units, text),
            ("tts", descriptions.TTS, text, units),
        ):
            values = {"description": rng.choice(options), "source": source, "target": target}
            lines[kind].append(record(prefix, prompts.CROSS_MODAL, values))
    return lines


def _units(row: dict) -> list[int]:
    """The units of a row; a UserError unless they are as `extract_units` writes them."""
    check_fields([row], ("units",))
    units = row["units"]
    if not units or not all(type(unit) is int and unit >= 0 for unit in units):
        raise UserError(
            f"{row.get('path', 'a row')}: expected units, whole numbers of at least 0, got"
            f" {str(units)[:60]}; leave the row out, or extract its units again."
        )
    return units


def count_units(line: str) -> dict[str, int]:
    """The number of units in a line of unit text or of a record."""
    return {"units": len(units_in(line))}
