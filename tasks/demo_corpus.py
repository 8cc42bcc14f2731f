"""The shipped corpus of a small world of everyday talk, for all three stages.

demo_modality_adaptation      units only, concatenated and cut
demo_asr                      units -> text
demo_asr_free_order           the part of demo_asr in free word order
demo_words                    units of short recordings -> text, without a dialogue around them
demo_asr_short                short recordings -> text
demo_asr_joined               short recordings of a speaker joined -> text
demo_tts                      text -> units of one voice
demo_tts_short                short texts -> units of that voice
demo_tts_joined               short texts joined -> units of that voice
demo_repetition, demo_repetition_joined
                              the same texts -> themselves
demo_text_instruction         written question -> written answer
demo_speech_to_speech, demo_speech_to_text, demo_text_to_speech, demo_text_to_text
                              the four forms of chain of modality
demo_asr_varied, demo_asr_free_order_varied, demo_speech_to_speech_varied,
demo_speech_to_text_varied    the same with units changed at random
demo_direct_speech            spoken question -> spoken answer, without the texts in between
demo_cross_modal_instruction  mixture of demo_asr, demo_asr_free_order (so that a model can't guess
                              words from their neighbours), demo_tts, demo_text_instruction,
                              demo_text_to_text and demo_text_to_speech
demo_chain_of_modality        mixture of the four forms
demo_word_by_word             mixture of demo_words, the short tasks, both repetitions and
                              demo_text_to_text
demo_all_tasks                the four forms, all tasks of transcribing and reading aloud, and
                              demo_repetition_joined; units of questions are varied

demo_with_chain, demo_without_chain
                              mixtures that differ in demo_speech_to_speech, demo_direct_speech

All of them also exist as demo_answers_asr etc., with a loss on the model's turns only instead of
on every token after the prefix. `add_tasks` adds the same tasks and mixtures for a corpus in
another folder.

Splits: train; test (other texts); unheard_voice (a voice that is not in train), except for
demo_tts; human (a person; all other voices are synthetic) for demo_modality_adaptation and
demo_asr. Short, joined and varied tasks, demo_words and the repetitions have train only.
"""

import os
from collections.abc import Callable

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

_TASKS_OF_INSTRUCTION = {
    "asr": 0.3,
    "asr_free_order": 0.12,
    "tts": 0.13,
    "text_instruction": 0.2,
    # A model trained from scratch has to learn the chain markers here: in stage 3 the embedding
    # is frozen.
    "text_to_text": 0.2,
    "text_to_speech": 0.05,
}
_TASKS_OF_CHAIN = {
    "speech_to_speech": 0.4,
    "speech_to_text": 0.2,
    "text_to_speech": 0.2,
    "text_to_text": 0.2,
}
# All that the shipped model does.
_ALL_TASKS = {
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
}
# A model trained from scratch first has to learn to find its place in the text or the units. It
# does so soonest in short strings of words.
_WORD_BY_WORD = {
    "repetition": 0.15,
    "words": 0.1,
    "asr_short": 0.3,
    "tts_short": 0.25,
    "repetition_joined": 0.1,
    "text_to_text": 0.1,
}
# What chain of modality is worth: two mixtures that differ in one task.
_DIRECT_SPEECH = prompts.SPEECH_TO_SPEECH_PROMPT + " [ua] {answer_units}<eoa>."
_BESIDE_ANSWERS = {"asr": 0.2, "tts": 0.15, "text_to_text": 0.15}
_WITH_CHAIN = {"speech_to_speech": 0.5, **_BESIDE_ANSWERS}
_WITHOUT_CHAIN = {"direct_speech": 0.5, **_BESIDE_ANSWERS}
# Template and metrics of each task of questions and answers.
_DIALOGUE_TASKS = {
    "text_instruction": (prompts.TEXT_INSTRUCTION, [metrics.answer_accuracy]),
    "speech_to_speech": (
        prompts.SPEECH_TO_SPEECH,
        [metrics.question_word_error_rate, metrics.answer_accuracy, metrics.unit_error_rate],
    ),
    "speech_to_text": (
        prompts.SPEECH_TO_TEXT,
        [metrics.question_word_error_rate, metrics.answer_accuracy],
    ),
    "text_to_speech": (
        prompts.TEXT_TO_SPEECH,
        [metrics.answer_accuracy, metrics.unit_error_rate],
    ),
    "text_to_text": (prompts.TEXT_TO_TEXT, [metrics.answer_accuracy]),
    "direct_speech": (_DIRECT_SPEECH, [metrics.unit_error_rate]),
}
# Share of the units that varied tasks replace, and of those that they drop.
_VARIED = 0.05
# Tasks of questions and answers that have a varied one: their question is spoken.
_SPOKEN_QUESTIONS = ("speech_to_speech", "speech_to_text")


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

    def utterances(*splits: str) -> RecordsInMemory:
        return _source(folder, "utterances", _UTTERANCE, splits)

    seqio.TaskRegistry.add(
        f"{prefix}_modality_adaptation",
        source=utterances("train", "test", "unheard_voice", "human"),
        preprocessors=[
            preprocessors.utterance_to_unit_text,
            preprocessors.tokenize_unit_text,
            preprocessors.concatenate_and_cut,
        ],
        output_features=_TARGETS,
        shuffle_buffer_size=None,
    )

    def add(name: str, source: RecordsInMemory, steps: list, metric_fns: list) -> None:
        seqio.TaskRegistry.add(
            f"{prefix}_{name}",
            source=source,
            preprocessors=[*steps, tokenize, seqio.preprocessors.append_eos],
            output_features=_DIALOGUE,
            shuffle_buffer_size=None,
            postprocess_fn=metrics.response_parser(VOCABULARY.tokenizer.template),
            metric_fns=[*metric_fns, metrics.form_errors],
        )

    add(
        "asr",
        utterances("train", "test", "unheard_voice", "human"),
        [preprocessors.speech_recognition],
        [metrics.word_error_rate],
    )
    free_order = preprocessors.only("topic", "free_order")
    # In free word order a model can't guess a word from its neighbours; it has to recognise it.
    add(
        "asr_free_order",
        utterances("train", "test", "unheard_voice"),
        [free_order, preprocessors.speech_recognition],
        [metrics.word_error_rate],
    )
    # Each time other units: nothing can be learned by heart.
    vary = preprocessors.vary_units(_VARIED)
    for name, steps in (
        ("asr", []),
        ("asr_free_order", [free_order]),
    ):
        add(
            f"{name}_varied",
            utterances("train"),
            [*steps, vary, preprocessors.speech_recognition],
            [metrics.word_error_rate],
        )
    # Short recordings, alone and joined.
    short = [free_order, preprocessors.at_most_words(4)]
    joined = [*short, preprocessors.join_recordings(3, edge=2)]
    for name, steps in (("short", short), ("joined", joined)):
        add(
            f"asr_{name}",
            utterances("train"),
            [*steps, vary, preprocessors.speech_recognition],
            [metrics.word_error_rate],
        )
        add(
            f"tts_{name}",
            utterances("train"),
            [
                preprocessors.only("speaker", TARGET_VOICE),
                *steps,
                preprocessors.speech_synthesis,
            ],
            [metrics.unit_error_rate],
        )
    for name, steps in (("repetition", short), ("repetition_joined", joined)):
        add(
            name,
            utterances("train"),
            [*steps, preprocessors.repetition],
            [metrics.word_error_rate],
        )
    seqio.TaskRegistry.add(
        f"{prefix}_words",
        source=utterances("train"),
        preprocessors=[
            *short,
            vary,
            preprocessors.speech_and_text,
            preprocessors.tokenize_texts,
            seqio.preprocessors.append_eos,
        ],
        output_features=_DIALOGUE,
        shuffle_buffer_size=None,
    )
    add(
        "tts",
        utterances("train", "test"),
        [preprocessors.only("speaker", TARGET_VOICE), preprocessors.speech_synthesis],
        [metrics.unit_error_rate],
    )
    for name, (template, metric_fns) in _DIALOGUE_TASKS.items():
        source = _source(
            folder, "dialogues", _QUESTION_AND_ANSWER, ("train", "test", "unheard_voice")
        )
        add(name, source, [preprocessors.question_and_answer(template)], metric_fns)
        if name in _SPOKEN_QUESTIONS:
            varied = [
                preprocessors.vary_units(_VARIED, "question_units"),
                preprocessors.question_and_answer(template),
            ]
            train = _source(folder, "dialogues", _QUESTION_AND_ANSWER, ("train",))
            add(f"{name}_varied", train, varied, metric_fns)

    for name, rates in (
        ("cross_modal_instruction", _TASKS_OF_INSTRUCTION),
        ("chain_of_modality", _TASKS_OF_CHAIN),
        ("word_by_word", _WORD_BY_WORD),
        ("all_tasks", _ALL_TASKS),
        ("with_chain", _WITH_CHAIN),
        ("without_chain", _WITHOUT_CHAIN),
    ):
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
      name: of a task or mixture without the prefix, e.g. "all_tasks".
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
