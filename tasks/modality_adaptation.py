"""Stage 1 over text files of your own, one `<sosp><661>...<eosp>` a line.

from tasks import modality_adaptation
inputs.load_host_batches.mixture = @modality_adaptation.unit_lines()
modality_adaptation.unit_lines.files = {'train': 'gs://bucket/units-*.txt'}
modality_adaptation.unit_lines.tokenizer = 'SpeechGPT-7B-ma'
"""

from collections.abc import Mapping

import seqio

from speechgpt_jax.data import preprocessors
from speechgpt_jax.data.vocabulary import Vocabulary


def unit_lines(
    files: Mapping[str, str],
    tokenizer: str,
    name: str = "modality_adaptation",
    shuffle_buffer_size: int = 10_000,
) -> str:
    """Registers a task and gives its name.

    Args:
      files: split -> file pattern.
      tokenizer: folder with the tokenizer.
      name: of the task.
      shuffle_buffer_size: windows of tokens to draw from.
    """
    vocabulary = Vocabulary.from_pretrained(tokenizer)
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource(files),
        preprocessors=[preprocessors.line_to_unit_text, preprocessors.concatenate_and_cut],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
        shuffle_buffer_size=shuffle_buffer_size,
    )
    return name
