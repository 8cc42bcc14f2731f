"""Stage 1 on your own unit text: lines of `<sosp><661>...<eosp>`, or rows with `units`.

from tasks import modality_adaptation
inputs.load_host_batches.mixture = @modality_adaptation.unit_lines()
modality_adaptation.unit_lines.files = {'train': 'gs://bucket/units-*.jsonl'}
modality_adaptation.unit_lines.tokenizer = 'SpeechGPT-7B-ma'
"""

import functools
from collections.abc import Mapping

import seqio

from speechgpt_jax.data import preprocessors, records, registry
from speechgpt_jax.data.sources import RecordFiles
from speechgpt_jax.data.vocabulary import Vocabulary


def unit_lines(
    files: Mapping[str, str],
    tokenizer: str,
    name: str = "modality_adaptation",
    on_error: str = "stop",
) -> str:
    """Registers a task and returns its name.

    Args:
      files: split -> file pattern: text with one sequence per line, or JSONL, TFRecord or
        ArrayRecord with unit text in `units`; in JSONL also lists of numbers, as those that
        tools.extract_units writes.
      tokenizer: folder with the tokenizer.
      name: name of the task.
      on_error: "stop" raises before training if a record is bad; "skip" leaves bad records out and
        logs them.

    Raises:
      UserError: there is no tokenizer in the folder, `on_error` is something else, or the name is
        illegal or another task's.
    """
    arguments = {"files": files, "tokenizer": tokenizer, "on_error": on_error}

    def register() -> None:
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

    return registry.register_once(name, arguments, register)
