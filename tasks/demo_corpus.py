"""The shipped corpus of a small world of everyday talk, for all three stages.

The tables _UTTERANCE_TASKS, _DIALOGUE_TASKS and _MIXTURES list the tasks and mixtures, such as
demo_asr. Two more tasks are not dialogues: demo_modality_adaptation, units only, concatenated and
cut, and demo_words, units of short recordings -> text.

All of them also exist as demo_answers_asr etc., with a loss on the model's turns only instead of
on every token after the prefix. `add_tasks` adds the same tasks and mixtures for a corpus in
another folder.

Splits: train; test (other texts); unheard_voice (a voice that is not in train); human (a person;
all other voices are synthetic).
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import seqio
import tensorflow as tf

from speechgpt_jax import prompts
from speechgpt_jax.data import preprocessors, registry
from speechgpt_jax.data.sources import DEMO_CORPUS, RecordsInMemory
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.evaluation import metrics
from speechgpt_jax.tokenizer import DEMO_TOKENIZER

# Answers and TTS targets are always spoken by this voice.
TARGET_VOICE = "slt"

_TEXT = tf.io.FixedLenFeature([], tf.string)
_UNITS = tf.io.RaggedFeature(tf.int64)
_UTTERANCE = {"text": _TEXT, "speaker": _TEXT, "topic": _TEXT, "units": _UNITS}
_QUESTION_AND_ANSWER = {
    "question": _TEXT,
    "answer": _TEXT,
    "question_units": _UNITS,
    "answer_units": _UNITS,
}

VOCABULARY = Vocabulary.from_pretrained(DEMO_TOKENIZER)
_TARGETS = {"targets": seqio.Feature(VOCABULARY, add_eos=False)}
_DIALOGUE = {
    "inputs": seqio.Feature(VOCABULARY, add_eos=False),
    "targets": seqio.Feature(VOCABULARY, add_eos=True),
}

_TRAIN = ("train",)
_KNOWN_VOICES = ("train", "test")
_SYNTHETIC = ("train", "test", "unheard_voice")
_ALL = ("train", "test", "unheard_voice", "human")

# In free word order a model can't guess a word from its neighbours; it has to recognise it.
_FREE_ORDER = preprocessors.only("topic", "free_order")
_SHORT = (_FREE_ORDER, preprocessors.at_most_words(4))
_JOINED = (*_SHORT, preprocessors.join_recordings(3, edge=2))
_TARGET_VOICE_ONLY = preprocessors.only("speaker", TARGET_VOICE)
# Units that are replaced, and as many that are dropped: each time others, so that nothing can be
# learned by heart.
_VARIED = 0.05
_VARY = preprocessors.vary_units(_VARIED)
_VARY_QUESTION = preprocessors.vary_units(_VARIED, "question_units")

_ASR, _TTS = preprocessors.speech_recognition, preprocessors.speech_synthesis
_REPEAT = preprocessors.repetition
_ANSWER = preprocessors.question_and_answer
# An answer without the texts of chain of modality, to measure their benefit.
_DIRECT_SPEECH = prompts.SPEECH_TO_SPEECH_PROMPT + " [ua] {answer_units}<eoa>."

_WER, _UNITS_WRONG = (metrics.word_error_rate,), (metrics.unit_error_rate,)
_ANSWERS = (metrics.answer_accuracy,)
_SPOKEN_QUESTIONS = (metrics.question_word_error_rate, metrics.answer_accuracy)
_ANSWERS_ALOUD = (metrics.answer_accuracy, metrics.unit_error_rate)


class _Task(NamedTuple):
    """A task of dialogues; `steps` make one from a record."""

    name: str
    splits: tuple[str, ...]
    steps: Sequence[Callable]
    metric_fns: Sequence[Callable]


_UTTERANCE_TASKS = (
    # Units -> text.
    _Task("asr", _ALL, [_ASR], _WER),
    _Task("asr_free_order", _SYNTHETIC, [_FREE_ORDER, _ASR], _WER),
    _Task("asr_varied", _TRAIN, [_VARY, _ASR], _WER),
    _Task("asr_free_order_varied", _TRAIN, [_FREE_ORDER, _VARY, _ASR], _WER),
    # Short recordings, alone and several of a speaker joined.
    _Task("asr_short", _TRAIN, [*_SHORT, _VARY, _ASR], _WER),
    _Task("asr_joined", _TRAIN, [*_JOINED, _VARY, _ASR], _WER),
    # Text -> units of one voice.
    _Task("tts", _KNOWN_VOICES, [_TARGET_VOICE_ONLY, _TTS], _UNITS_WRONG),
    _Task("tts_short", _TRAIN, [_TARGET_VOICE_ONLY, *_SHORT, _TTS], _UNITS_WRONG),
    _Task("tts_joined", _TRAIN, [_TARGET_VOICE_ONLY, *_JOINED, _TTS], _UNITS_WRONG),
    # Text -> the same text.
    _Task("repetition", _TRAIN, [*_SHORT, _REPEAT], _WER),
    _Task("repetition_joined", _TRAIN, [*_JOINED, _REPEAT], _WER),
)
_DIALOGUE_TASKS = (
    # Written question -> written answer, as in cross-modal instruction.
    _Task("text_instruction", _SYNTHETIC, [_ANSWER(prompts.TEXT_INSTRUCTION)], _ANSWERS),
    # The four forms of chain of modality.
    _Task(
        "speech_to_speech",
        _SYNTHETIC,
        [_ANSWER(prompts.SPEECH_TO_SPEECH)],
        (*_SPOKEN_QUESTIONS, metrics.unit_error_rate),
    ),
    _Task("speech_to_text", _SYNTHETIC, [_ANSWER(prompts.SPEECH_TO_TEXT)], _SPOKEN_QUESTIONS),
    _Task("text_to_speech", _SYNTHETIC, [_ANSWER(prompts.TEXT_TO_SPEECH)], _ANSWERS_ALOUD),
    _Task("text_to_text", _SYNTHETIC, [_ANSWER(prompts.TEXT_TO_TEXT)], _ANSWERS),
    _Task(
        "speech_to_speech_varied",
        _TRAIN,
        [_VARY_QUESTION, _ANSWER(prompts.SPEECH_TO_SPEECH)],
        (*_SPOKEN_QUESTIONS, metrics.unit_error_rate),
    ),
    _Task(
        "speech_to_text_varied",
        _TRAIN,
        [_VARY_QUESTION, _ANSWER(prompts.SPEECH_TO_TEXT)],
        _SPOKEN_QUESTIONS,
    ),
    _Task("direct_speech", _SYNTHETIC, [_ANSWER(_DIRECT_SPEECH)], _UNITS_WRONG),
)

_BESIDE_ANSWERS = {"asr": 0.2, "tts": 0.15, "text_to_text": 0.15}
# Mixture -> tasks and their rates.
_MIXTURES = {
    "cross_modal_instruction": {
        "asr": 0.3,
        "asr_free_order": 0.12,
        "tts": 0.13,
        "text_instruction": 0.2,
        # A model trained from scratch has to learn the chain markers here: in stage 3 the embedding
        # is frozen.
        "text_to_text": 0.2,
        "text_to_speech": 0.05,
    },
    "chain_of_modality": {
        "speech_to_speech": 0.4,
        "speech_to_text": 0.2,
        "text_to_speech": 0.2,
        "text_to_text": 0.2,
    },
    # A model trained from scratch first has to learn to find its place in the text or the units. It
    # does so soonest in short strings of words.
    "word_by_word": {
        "repetition": 0.15,
        "words": 0.1,
        "asr_short": 0.3,
        "tts_short": 0.25,
        "repetition_joined": 0.1,
        "text_to_text": 0.1,
    },
    # All that the shipped model does.
    "all_tasks": {
        "speech_to_speech_varied": 0.1,
        "speech_to_text_varied": 0.07,
        "text_to_speech": 0.08,
        "text_to_text": 0.12,
        "asr_varied": 0.16,
        "asr_short": 0.04,
        "asr_joined": 0.1,
        "asr_free_order_varied": 0.08,
        "tts": 0.16,
        "tts_short": 0.03,
        "tts_joined": 0.05,
        "repetition_joined": 0.01,
    },
    # Two mixtures that differ in one task.
    "with_chain": {"speech_to_speech": 0.5, **_BESIDE_ANSWERS},
    "without_chain": {"direct_speech": 0.5, **_BESIDE_ANSWERS},
}


def add_tasks(
    prefix: str,
    folder: str | os.PathLike,
    tokenize: Callable[..., tf.data.Dataset] = preprocessors.tokenize_dialogues,
) -> None:
    """Registers all tasks and mixtures as `{prefix}_asr` etc.

    Args:
      prefix: start of the names.
      folder: records that tools.build_demo_corpus wrote.
      tokenize: the preprocessor of dialogues; it decides which tokens have a loss.
    """
    seqio.TaskRegistry.add(
        f"{prefix}_modality_adaptation",
        source=_source(folder, "utterances", _UTTERANCE, _ALL),
        preprocessors=[
            preprocessors.utterance_to_unit_text,
            preprocessors.tokenize_unit_text,
            preprocessors.concatenate_and_cut,
        ],
        output_features=_TARGETS,
        shuffle_buffer_size=None,
    )
    seqio.TaskRegistry.add(
        f"{prefix}_words",
        source=_source(folder, "utterances", _UTTERANCE, _TRAIN),
        preprocessors=[
            *_SHORT,
            _VARY,
            preprocessors.speech_and_text,
            preprocessors.tokenize_texts,
            seqio.preprocessors.append_eos,
        ],
        output_features=_DIALOGUE,
        shuffle_buffer_size=None,
    )
    for kind, features, tasks in (
        ("utterances", _UTTERANCE, _UTTERANCE_TASKS),
        ("dialogues", _QUESTION_AND_ANSWER, _DIALOGUE_TASKS),
    ):
        for task in tasks:
            seqio.TaskRegistry.add(
                f"{prefix}_{task.name}",
                source=_source(folder, kind, features, task.splits),
                preprocessors=[*task.steps, tokenize, seqio.preprocessors.append_eos],
                output_features=_DIALOGUE,
                shuffle_buffer_size=None,
                postprocess_fn=metrics.response_parser(VOCABULARY.tokenizer.template),
                metric_fns=[*task.metric_fns, metrics.form_errors],
            )
    for name, rates in _MIXTURES.items():
        seqio.MixtureRegistry.add(
            f"{prefix}_{name}", [(f"{prefix}_{task}", rate) for task, rate in rates.items()]
        )


def _source(
    folder: str | os.PathLike, kind: str, features: dict, splits: tuple[str, ...]
) -> RecordsInMemory:
    files = {split: os.path.join(folder, f"{kind}-{split}.tfrecord.gz") for split in splits}
    return RecordsInMemory(files, features)


def mixture(name: str, folder: str, loss_on_answers: bool = False) -> str:
    """Registers the tasks of a corpus, and returns the full name of one of them; for gin.

    Args:
      name: name of a task or mixture without the prefix, e.g. "all_tasks".
      folder: records that tools.build_demo_corpus wrote.
      loss_on_answers: a loss on the model's turns only, instead of on every token after the prefix;
        then training needs fewer tokens.

    Raises:
      UserError: an earlier call had another folder or another loss.
    """
    tokenize = (
        preprocessors.tokenize_answers if loss_on_answers else preprocessors.tokenize_dialogues
    )
    registry.register_once(
        "corpus_modality_adaptation",  # One of them; all are registered together.
        {"folder": folder, "loss_on_answers": loss_on_answers},
        lambda: add_tasks("corpus", folder, tokenize),
    )
    return f"corpus_{name}"


add_tasks("demo", DEMO_CORPUS)
add_tasks("demo_answers", DEMO_CORPUS, preprocessors.tokenize_answers)
