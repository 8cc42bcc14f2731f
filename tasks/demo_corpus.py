"""The embedded corpus of a small world of everyday talk, for all three stages.

demo_modality_adaptation      units only, concatenated and cut
demo_asr                      units -> text
demo_asr_free_order           the part of demo_asr in free word order
demo_tts                      text -> units of one voice
demo_text_instruction         written question -> written answer
demo_speech_to_speech, demo_speech_to_text, demo_text_to_speech, demo_text_to_text
                              the four forms of chain of modality
demo_cross_modal_instruction  mixture of demo_asr, demo_asr_free_order (so that a model can't guess
                              words from their neighbours), demo_tts, demo_text_instruction,
                              demo_text_to_text and demo_text_to_speech
demo_chain_of_modality        mixture of the four forms

Splits: train, test (other texts), unheard_voice (a voice that is not in train; not for demo_tts)
and, for demo_modality_adaptation and demo_asr, human (a person; all other voices are synthetic).
"""

import seqio
import tensorflow as tf

from speechgpt_jax import prompts
from speechgpt_jax.data import preprocessors
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


def _source(kind: str, features: dict, splits: tuple[str, ...]) -> RecordsInMemory:
    files = {split: str(DEMO_CORPUS / f"{kind}-{split}.tfrecord.gz") for split in splits}
    return RecordsInMemory(files, features)


def _utterances(*splits: str) -> RecordsInMemory:
    return _source("utterances", _UTTERANCE, splits)


def _dialogues(*splits: str) -> RecordsInMemory:
    return _source("dialogues", _QUESTION_AND_ANSWER, splits)


_VOCABULARY = Vocabulary.from_pretrained(DEMO_TOKENIZER)
_TARGETS = {"targets": seqio.Feature(_VOCABULARY, add_eos=False)}
_DIALOGUE = {
    "inputs": seqio.Feature(_VOCABULARY, add_eos=False),
    "targets": seqio.Feature(_VOCABULARY, add_eos=True),
}
_TOKENIZE = (preprocessors.tokenize_dialogues, seqio.preprocessors.append_eos)

seqio.TaskRegistry.add(
    "demo_modality_adaptation",
    source=_utterances("train", "test", "unheard_voice", "human"),
    preprocessors=[
        preprocessors.utterance_to_unit_text,
        preprocessors.tokenize_unit_text,
        preprocessors.concatenate_and_cut,
    ],
    output_features=_TARGETS,
    shuffle_buffer_size=None,
)

seqio.TaskRegistry.add(
    "demo_asr",
    source=_utterances("train", "test", "unheard_voice", "human"),
    preprocessors=[preprocessors.speech_recognition, *_TOKENIZE],
    output_features=_DIALOGUE,
    shuffle_buffer_size=None,
    postprocess_fn=metrics.read_response,
    metric_fns=[metrics.word_error_rate, metrics.form_errors],
)

seqio.TaskRegistry.add(
    "demo_tts",
    source=_utterances("train", "test"),
    preprocessors=[
        preprocessors.only("speaker", TARGET_VOICE),
        preprocessors.speech_synthesis,
        *_TOKENIZE,
    ],
    output_features=_DIALOGUE,
    shuffle_buffer_size=None,
    postprocess_fn=metrics.read_response,
    metric_fns=[metrics.unit_error_rate, metrics.form_errors],
)

# In free word order a model can't guess a word from its neighbours; it has to recognise it.
seqio.TaskRegistry.add(
    "demo_asr_free_order",
    source=_utterances("train", "test", "unheard_voice"),
    preprocessors=[
        preprocessors.only("topic", "free_order"),
        preprocessors.speech_recognition,
        *_TOKENIZE,
    ],
    output_features=_DIALOGUE,
    shuffle_buffer_size=None,
    postprocess_fn=metrics.read_response,
    metric_fns=[metrics.word_error_rate, metrics.form_errors],
)


def _add_dialogue_task(name: str, template: str, metric_fns: list) -> None:
    seqio.TaskRegistry.add(
        name,
        source=_dialogues("train", "test", "unheard_voice"),
        preprocessors=[preprocessors.question_and_answer(template), *_TOKENIZE],
        output_features=_DIALOGUE,
        shuffle_buffer_size=None,
        postprocess_fn=metrics.read_response,
        metric_fns=[*metric_fns, metrics.form_errors],
    )


_add_dialogue_task("demo_text_instruction", prompts.TEXT_INSTRUCTION, [metrics.answer_accuracy])
_add_dialogue_task(
    "demo_speech_to_speech",
    prompts.SPEECH_TO_SPEECH,
    [metrics.question_word_error_rate, metrics.answer_accuracy, metrics.unit_error_rate],
)
_add_dialogue_task(
    "demo_speech_to_text",
    prompts.SPEECH_TO_TEXT,
    [metrics.question_word_error_rate, metrics.answer_accuracy],
)
_add_dialogue_task(
    "demo_text_to_speech",
    prompts.TEXT_TO_SPEECH,
    [metrics.answer_accuracy, metrics.unit_error_rate],
)
_add_dialogue_task("demo_text_to_text", prompts.TEXT_TO_TEXT, [metrics.answer_accuracy])

seqio.MixtureRegistry.add(
    "demo_cross_modal_instruction",
    [
        ("demo_asr", 0.3),
        ("demo_asr_free_order", 0.12),
        ("demo_tts", 0.13),
        ("demo_text_instruction", 0.2),
        # A model trained from scratch has to learn the chain markers here: in stage 3 the embedding
        # is frozen.
        ("demo_text_to_text", 0.2),
        ("demo_text_to_speech", 0.05),
    ],
)

seqio.MixtureRegistry.add(
    "demo_chain_of_modality",
    [
        ("demo_speech_to_speech", 0.4),
        ("demo_speech_to_text", 0.2),
        ("demo_text_to_speech", 0.2),
        ("demo_text_to_text", 0.2),
    ],
)
