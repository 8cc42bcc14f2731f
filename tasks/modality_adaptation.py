"""Stage 1 over unit text of your own: `<sosp><661>...<eosp>` a line, or rows with `units`.

from tasks import modality_adaptation
inputs.load_host_batches.mixture = @modality_adaptation.unit_lines()
modality_adaptation.unit_lines.files = {'train': 'gs://bucket/units-*.jsonl'}
modality_adaptation.unit_lines.tokenizer = 'SpeechGPT-7B-ma'
"""

import functools
from collections.abc import Mapping

import seqio

from speechgpt_jax.data import preprocessors, records
from speechgpt_jax.data.sources import RecordFiles
from speechgpt_jax.data.vocabulary import Vocabulary


def unit_lines(
    files: Mapping[str, str],
    tokenizer: str,
    name: str = "modality_adaptation",
    on_error: str = "stop",
) -> str:
    """Registers a task and gives its name.

    Args:
      files: split -> file pattern: text with a sequence a line, or JSONL, TFRecord or ArrayRecord
        whose `units` is unit text (in JSON also a list of numbers, as tools/extract_units has it).
      tokenizer: folder with the tokenizer.
      name: of the task.
      on_error: "stop" before the first record if any is bad, or "skip" those, counted and listed.
    """
    vocabulary = Vocabulary.from_pretrained(tokenizer)
    check = records.check_unit_text(len(vocabulary.unit_ids))
    seqio.TaskRegistry.add(
        name,
        source=RecordFiles(files, ("units",), check, on_error),
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"unit_text": "units"}),
            preprocessors.tokenize_unit_text,
            seqio.CacheDatasetPlaceholder(),
            preprocessors.concatenate_and_cut,
        ],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
        shuffle_buffer_size=None,
    )
    return name
