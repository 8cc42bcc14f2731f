"""Dialogues that the demo tasks make from records."""

import re

import pytest
import seqio

from speechgpt_jax import prompts
from speechgpt_jax.data import descriptions
from speechgpt_jax.errors import UserError
from tasks import demo_corpus
from tests.data.synthetic_corpus import task_on, write_corpus

pytestmark = pytest.mark.slow

HUMAN, SPEECHGPT = r"\[Human\] :", r"\[SpeechGPT\] :"
UNITS = r"<sosp>(?: <\d+>)+ <eosp>"
TEXT = r"[a-z ]+"
ASR = "|".join(descriptions.ASR).replace("?", r"\?")
TTS = "|".join(descriptions.TTS).replace("?", r"\?")

# Decoded text, with spaces around added tokens.
DIALOGUES = {
    "demo_asr": rf"{HUMAN} (?:{ASR})\. This is input: {UNITS} <eoh> {SPEECHGPT} {TEXT}<eoa> ",
    "demo_tts": rf"{HUMAN} (?:{TTS})\. This is input: {TEXT} <eoh> {SPEECHGPT} {UNITS} <eoa> ",
    "demo_text_instruction": rf"{HUMAN} {TEXT}\? <eoh> {SPEECHGPT} {TEXT}\.<eoa> ",
    "demo_speech_to_speech": rf"{HUMAN} {UNITS} <eoh> \. {SPEECHGPT} {TEXT}\?; "
    rf"\[ta\] {TEXT}\.; \[ua\] {UNITS} <eoa>\.",
    "demo_speech_to_text": rf"{HUMAN} {UNITS} Answer in writing\. <eoh> \. {SPEECHGPT} "
    rf"{TEXT}\?; \[ta\] {TEXT}\.<eoa>\.",
    "demo_text_to_speech": rf"{HUMAN} {TEXT}\? Answer aloud\. <eoh> \. {SPEECHGPT} "
    rf"\[ta\] {TEXT}\.; \[ua\] {UNITS} <eoa>\.",
    "demo_direct_speech": rf"{HUMAN} {UNITS} <eoh> \. {SPEECHGPT} \[ua\] {UNITS} <eoa>\.",
    "demo_text_to_text": rf"{HUMAN} {TEXT}\? <eoh> \. {SPEECHGPT} \[ta\] {TEXT}\.<eoa>\.",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, size=12)
    return folder


def examples(corpus, name, split="train"):
    dataset = task_on(corpus, name).get_dataset(None, split, shuffle=False, seed=0)
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues(corpus, name):
    features = seqio.TaskRegistry.get(name).output_features
    vocabulary = features["targets"].vocabulary
    found = examples(corpus, name)
    assert len(found) == (4 if name == "demo_tts" else 12)
    for example in found:
        assert vocabulary.decode(example["inputs"]) == prompts.DEFAULT_PREFIX.strip()
        assert example["targets"][-1] == vocabulary.eos_id
        assert re.fullmatch(DIALOGUES[name], vocabulary.decode(example["targets"]))


def test_free_order_is_a_part_of_asr(corpus):
    assert len(examples(corpus, "demo_asr_free_order")) == 6


def test_short_recordings_are_transcribed_alone_and_joined(tmp_path):
    vocabulary = demo_corpus.VOCABULARY
    write_corpus(tmp_path, size=90)
    words, joined = examples(tmp_path, "demo_words"), examples(tmp_path, "demo_asr_joined")
    assert len(words) > 2 * len(joined) > 0
    for example in words:
        assert re.fullmatch(UNITS, vocabulary.decode(example["inputs"]).strip())
        assert re.fullmatch(TEXT, vocabulary.decode(example["targets"]).strip())
    for example in joined:
        assert re.fullmatch(DIALOGUES["demo_asr"], vocabulary.decode(example["targets"]))


def short_dialogues(folder, short, joined):
    """Decoded dialogues of two tasks, with short recordings and with several of them joined."""
    write_corpus(folder, size=90)
    alone, together = examples(folder, short), examples(folder, joined)
    assert len(alone) > 2 * len(together) > 0
    return [demo_corpus.VOCABULARY.decode(example["targets"]) for example in alone + together]


def test_short_texts_of_one_voice_are_read_aloud_alone_and_joined(tmp_path):
    for dialogue in short_dialogues(tmp_path, "demo_tts_short", "demo_tts_joined"):
        assert re.fullmatch(DIALOGUES["demo_tts"], dialogue)


def test_texts_are_repeated(tmp_path):
    for dialogue in short_dialogues(tmp_path, "demo_repetition", "demo_repetition_joined"):
        asked, answered = re.fullmatch(
            r"\[Human\] ?: .*This is input: (.*)<eoh> \[SpeechGPT\] ?: (.*)<eoa>\s*", dialogue
        ).groups()
        assert asked.strip() == answered.strip()


def test_mixtures_have_all_their_tasks():
    cross_modal = seqio.MixtureRegistry.get("demo_cross_modal_instruction")
    assert [t.name for t in cross_modal.tasks] == [
        "demo_asr",
        "demo_asr_free_order",
        "demo_text_instruction",
        "demo_text_to_speech",
        "demo_text_to_text",
        "demo_tts",
    ]
    chain = seqio.MixtureRegistry.get("demo_chain_of_modality")
    assert len(chain.tasks) == 4
    with_chain, without = (
        {task.name for task in seqio.MixtureRegistry.get(f"demo_{name}_chain").tasks}
        for name in ("with", "without")
    )
    assert with_chain ^ without == {"demo_speech_to_speech", "demo_direct_speech"}


@pytest.mark.parametrize("name", DIALOGUES)
def test_targets_are_read_back_by_the_metrics(corpus, name):
    """A response equal to the reference has no errors."""
    task = seqio.TaskRegistry.get(name)
    vocabulary = task.output_features["targets"].vocabulary
    responses = [
        task.postprocess_fn(vocabulary.decode(example["targets"]))
        for example in examples(corpus, name)
    ]
    for metric_fn in task.metric_fns:
        for figure, value in metric_fn(responses, responses).items():
            if not figure.endswith("another_sentence"):
                assert value == (1.0 if figure.startswith("answer_accuracy") else 0.0), figure
            else:
                assert value > 0.5


def test_a_corpus_in_another_folder_with_a_loss_on_answers(corpus):
    name = demo_corpus.mixture("all_tasks", str(corpus), loss_on_answers=True)
    assert name == demo_corpus.mixture("all_tasks", str(corpus), loss_on_answers=True)
    with pytest.raises(UserError, match="bind the same to both"):
        demo_corpus.mixture("asr", "another", loss_on_answers=True)
    assert len(seqio.MixtureRegistry.get(name).tasks) == 12
    task = seqio.TaskRegistry.get("corpus_speech_to_text")
    answers = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    dialogues = examples(corpus, "demo_speech_to_text")
    assert {whole(example) for example in answers} == {whole(example) for example in dialogues}
    for example in answers:
        assert demo_corpus.VOCABULARY.decode(example["inputs"]).endswith("[SpeechGPT]")
        assert demo_corpus.VOCABULARY.decode(example["targets"]).startswith(":")


def whole(example):
    return (*example["inputs"], *example["targets"])
