"""From a folder of recordings and a table of dialogues to packed batches of the three stages."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from speechgpt_jax import prompts
from speechgpt_jax.corpus import plan, text_to_speech
from speechgpt_jax.corpus import speech_instruct as speech_instruct_data
from speechgpt_jax.corpus.dialogues import CHAIN_FORMS, ModelSynthesizer
from speechgpt_jax.corpus.records import reason_against
from speechgpt_jax.corpus.sound import load
from speechgpt_jax.data import descriptions
from speechgpt_jax.data.sources import DEMO_CORPUS
from speechgpt_jax.errors import UserError
from speechgpt_jax.speech.encoder.speech2unit import Speech2Unit
from speechgpt_jax.tokenizer import DEMO_TOKENIZER, Tokenizer
from speechgpt_jax.unit_text import units_to_text
from tasks import modality_adaptation, speech_instruct
from tests.data.packed_texts import load_once
from tests.decoding.overfitted import learn_by_heart
from tools import build_speech_instruct, extract_units

pytestmark = pytest.mark.slow

DIALOGUES = [
    {"question": "what is two plus two?", "answer": "two plus two is four."},
    {"question": "what is unspeakable?", "answer": "nothing is."},
    {"question": "which  colour\nis grass?", "answer": "grass is green."},
    {"question": "tell me a lot.", "answer": "a lot " * 20},
    {"question": "a <eoh> in a question?", "answer": "no."},
]
REASONS = ["no such word", "the answer has 40 words", "the text has <eoh> in it"]


def run(tool, *arguments, **flags):
    tool.main([*arguments, *(f"--{name}={value}" for name, value in flags.items())])


def chain_flags(voice, hubert):
    return {"tts": voice, "hubert": hubert, "question_voices": "rms,kal16", "prefix": "Hi.\n"}


def lines_of(output: Path, kind: str) -> list[str]:
    files = sorted(output.glob(f"{kind}-*-of-*.*"))
    return [line for file in files for line in file.read_text().splitlines()]


def rows_of(output: Path, kind: str) -> list[dict]:
    return [json.loads(line) for line in lines_of(output, kind)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("speech_instruct")


@pytest.fixture(scope="module")
def units(folder, small_hubert):
    """Twelve shipped recordings: one has no text, one has a token in it."""
    clips = json.loads((DEMO_CORPUS / "clips" / "clips.json").read_text())[:12]
    rows = [{"path": str(DEMO_CORPUS / "clips" / c["file"]), "text": c["text"]} for c in clips]
    del rows[3]["text"]
    rows[5]["text"] = "say <7> or <sosp>"
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / "units"
    run(extract_units, input=manifest, hubert=small_hubert, output=output, shard_size=5)
    return output


@pytest.fixture(scope="module")
def pairs(folder, units):
    output = folder / "stage2"
    run(build_speech_instruct, "cross_modal_instruction", units=units, output=output)
    return output


@pytest.fixture(scope="module")
def table(folder):
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DIALOGUES))
    return folder / "dialogues.jsonl"


@pytest.fixture(scope="module")
def chain(folder, table, voice, small_hubert):
    output = folder / "stage3"
    flags = {
        "tts": voice,
        "hubert": small_hubert,
        "question_voices": "rms,kal16",
        "prefix": "Hi.\n",
    }
    run(build_speech_instruct, "chain_of_modality", dialogues=table, output=output, **flags)
    return output


def test_stage_1_has_the_units_of_every_recording(folder, units):
    output = folder / "stage1"
    run(build_speech_instruct, "modality_adaptation", units=units, output=output)
    said = lines_of(output, "units")
    assert said == [units_to_text(row["units"]) for row in rows_of(units, "units")]
    assert len(said) == 12


def test_an_output_is_not_resumed_with_units_that_were_made_again(units, tmp_path):
    again = tmp_path / "units"
    shutil.copytree(units, again)
    run(build_speech_instruct, "modality_adaptation", units=again, output=tmp_path / "stage1")
    run(build_speech_instruct, "modality_adaptation", units=again, output=tmp_path / "stage1")
    plan = json.loads((again / "plan.json").read_text())
    (again / "plan.json").write_text(json.dumps(plan | {"hubert": "/another"}))
    with pytest.raises(UserError, match="stage1 was begun with different units; name another"):
        run(build_speech_instruct, "modality_adaptation", units=again, output=tmp_path / "stage1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("oops", r"units-00000-of-00001\.jsonl:2: 'oops' is not a JSON object"),
        ('{"path": "b.wav", "text": "b", "units": "<5>"}', "b.wav: expected units to be a list"),
        (
            '{"path": "b.wav", "text": "b", "units": []}',
            r"b.wav: expected units, .* got \[\]; leave",
        ),
        ('{"path": "b.wav", "text": "b", "units": [-1]}', r"b.wav: expected units, .* got \[-1\];"),
        ('{"text": "b", "units": [5]}', "a row has no path"),
    ],
)
def test_rows_of_units_that_were_changed_are_named(tmp_path, line, message):
    file = tmp_path / "units-00000-of-00001.jsonl"
    file.write_text(f'{{"path": "a.wav", "text": "a", "units": [5]}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        speech_instruct_data.write_pairs(plan.Shard(str(file), 0, 1).read(), prefix="")


def test_stage_2_has_both_directions_of_rows_with_a_text(units, pairs):
    usable = [row for i, row in enumerate(rows_of(units, "units")) if i not in (3, 5)]
    for kind, options in (("asr", descriptions.ASR), ("tts", descriptions.TTS)):
        written = rows_of(pairs, kind)
        assert len(written) == len(usable) == 10
        for record, row in zip(written, usable):
            sides = row["text"], units_to_text(row["units"])
            source, target = sides if kind == "tts" else sides[::-1]
            description = re.match(r"\[Human\]: (.*?)\. This is", record["plain_text"])[1]
            assert description in options
            values = {"description": description, "source": source, "target": target}
            assert record["plain_text"] == prompts.CROSS_MODAL.format(**values)
            assert record["prefix"] == prompts.DEFAULT_PREFIX
    reasons = [row["reason"] for row in rows_of(pairs, "rejects")]
    assert reasons == ["there is no text", "the text has <7> in it, which is a token"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no text"),
        ("\u3000\n", "there is no text"),
        ("\u200b \ufeff", "there is no text"),
        ("a\0c", "the text has a NUL character in it"),
        ("\u200b\u0928\u092e", ""),
        ("a \ud800", "the text has a lone surrogate in it"),
        ("[Human]", r"the text has [Human] in it"),
    ],
)
def test_texts_that_cannot_be_in_a_record(text, reason):
    assert reason_against(text).startswith(reason) and bool(reason_against(text)) == bool(reason)


def test_stage_3_has_units_of_questions_and_answers(chain, small_hubert, voice, tmp_path):
    speech2unit = Speech2Unit.from_pretrained(small_hubert)

    def unit_text(text, speaker):
        wav = tmp_path / "speech.wav"
        text_to_speech.synthesize(voice, speaker, text, wav)
        return units_to_text(speech2unit(load(str(wav)))[0])

    question, answer = "which colour is grass?", "grass is green."
    possible = [
        {
            "question": question,
            "answer": answer,
            "question_units": unit_text(question, speaker),
            "answer_units": unit_text(answer, "slt"),
        }
        for speaker in ("rms", "kal16")
    ]
    assert possible[0] != possible[1]
    for kind, template in CHAIN_FORMS.items():
        first, second = rows_of(chain, kind)
        assert second["plain_text"] in [template.format(**values) for values in possible]
        assert "two plus two is four." in first["plain_text"] and first["prefix"] == "Hi.\n"


def test_unusable_dialogues_are_listed(chain):
    rejects = rows_of(chain, "rejects")
    assert [row["question"] for row in rejects] == [DIALOGUES[i]["question"] for i in (1, 3, 4)]
    for row, reason in zip(rejects, REASONS):
        assert reason in row["reason"]


def test_two_workers_write_the_same(chain, table, voice, small_hubert, tmp_path):
    flags = {
        "tts": voice,
        "hubert": small_hubert,
        "question_voices": "rms,kal16",
        "prefix": "Hi.\n",
    }
    workers = {"direct_num_workers": 2, "direct_running_mode": "multi_threading"}
    run(
        build_speech_instruct,
        "chain_of_modality",
        dialogues=table,
        output=tmp_path,
        shard_size=2,
        **flags,
        **workers,
    )
    for kind in (*CHAIN_FORMS, "rejects"):
        assert len(list(tmp_path.glob(f"{kind}-*-of-00003.jsonl"))) >= 2
        assert lines_of(tmp_path, kind) == lines_of(chain, kind)


def test_the_output_becomes_packed_batches(pairs, chain, folder, units):
    output = folder / "stage1"
    run(build_speech_instruct, "modality_adaptation", units=units, output=output)
    tokenizer = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    files = {
        "built_asr": pairs / "asr-*.jsonl",
        "built_tts": pairs / "tts-*.jsonl",
        "built_chain": chain / "speech_to_speech-*.jsonl",
    }
    names = [
        speech_instruct.dialogue_lines(name, {"train": str(pattern)}, str(DEMO_TOKENIZER))
        for name, pattern in files.items()
    ]
    stage1 = {"train": str(output / "units-*.txt")}
    names.append(modality_adaptation.unit_lines(stage1, str(DEMO_TOKENIZER), "built_units"))
    for name, dialogues in zip(names, (10, 10, 2, None)):
        batches = list(load_once(name, "train", batch_size=2, sequence_length=256))
        tokens = np.concatenate([batch["decoder_target_tokens"] for batch in batches])
        assert np.isin(tokens, list(tokenizer.unit_ids)).any()
        if dialogues:
            assert (tokens == tokenizer.eos_id).sum() == dialogues


def test_a_text_to_unit_model_writes_units(table):
    tokenizer = Tokenizer.from_pretrained(DEMO_TOKENIZER)
    text, units = "it is five.", [3, 141, 59]
    said = prompts.CROSS_MODAL.format(
        description=prompts.SPEAK, source=text, target=units_to_text(units)
    )
    ids = tokenizer.encode(prompts.DEFAULT_PREFIX + said)
    model = learn_by_heart([[tokenizer.bos_id, *ids, tokenizer.eos_id]], tokenizer.vocab_size)
    voice = ModelSynthesizer(model, tokenizer, max_new_tokens=16)
    assert voice([(text, "")] * 3) == [units] * 3
    short = dataclasses.replace(voice, max_new_tokens=4)
    (reason,) = short([(text, "")])
    assert "4 tokens without an end" in reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cross_modal_instruction", "--output=x", "--units=x", "--prefix=\udcff"],
            "--prefix: expected a text in UTF-8",
        ),
        (["chain_of_modality", "--output=x"], "arguments are required: --dialogues"),
        (["chain_of_modality", "--output=x", "--dialogues=d"], "either --tts or --text_to_unit"),
        (
            ["chain_of_modality", "--output=x", "--dialogues=d", "--tts=nope {text} {wav}"],
            "'nope' is not installed",
        ),
        (
            ["chain_of_modality", "--output=x", "--dialogues=d", "--text_to_unit=nope"],
            "--text_to_unit=.*nope: there is no such folder",
        ),
        (
            ["chain_of_modality", "--output=x", "--dialogues=d", "--text_to_unit=tests"],
            "no checkpoint in .*tests",
        ),
        (["chain_of_modality", "--output=x", "--shard_size=0"], "shard_size: expected a whole"),
        (
            ["chain_of_modality", "--output=x", "--question_voices=a,,b"],
            "question_voices: expected",
        ),
        (["chain_of_modality", "--output=x", "--dialogues=d", "--tts=say"], "lacks"),
        (["modality_adaptation", "--output=x"], "arguments are required: --units"),
        (["modality_adaptation", "--output=x", "--units=u", "--tts=x"], "--tts is unknown"),
        (["cross_modal_instruction", "--output=x", "--units=u", "--shard_size=9"], "--shard_size"),
        (
            ["chain_of_modality", "--output=x", "--dialogues=d", "--tts=a", "--units=u"],
            "--units is unknown",
        ),
        (["modality_adaptation", "--output=x", "--units=none"], "has 0 finished shards"),
    ],
)
def test_missing_inputs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_speech_instruct.main(arguments)
