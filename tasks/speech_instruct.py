"""Stages 2 and 3 over SpeechInstruct files, JSON with `prefix` and `plain_text` a line.

from tasks import speech_instruct
inputs.load_host_batches.mixture = @speech_instruct.dialogue_lines()
speech_instruct.dialogue_lines.name = 'cross_modal_instruction'
speech_instruct.dialogue_lines.files = {'train': 'gs://bucket/cross_modal_instruction-*.jsonl'}
speech_instruct.dialogue_lines.tokenizer = 'SpeechGPT-7B-cm'
"""

from collections.abc import Mapping

import seqio

from speechgpt_jax.data import preprocessors
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.evaluation import metrics


def dialogue_lines(
    name: str,
    files: Mapping[str, str],
    tokenizer: str,
    shuffle_buffer_size: int = 10_000,
) -> str:
    """Registers a task and gives its name.

    Args:
      name: of the task.
      files: split -> file pattern.
      tokenizer: folder with the tokenizer.
      shuffle_buffer_size: dialogues to draw from.
    """
    vocabulary = Vocabulary.from_pretrained(tokenizer)
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource(files),
        preprocessors=[
            preprocessors.parse_json_dialogue,
            preprocessors.tokenize_dialogues,
            seqio.preprocessors.append_eos,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
        shuffle_buffer_size=shuffle_buffer_size,
        postprocess_fn=metrics.read_response,
        metric_fns=[metrics.answer_accuracy],
    )
    return name
