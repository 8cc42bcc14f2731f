"""Stages 2 and 3 on your own files: SpeechInstruct dialogues and written instructions.

Bound from gin; gin/stages/cross_modal_mixture.gin mixes them for stage 2.

    from tasks import speech_instruct
    inputs.load_host_batches.mixture = @speech_instruct.dialogue_lines()
    speech_instruct.dialogue_lines.name = 'chain_of_modality'
    speech_instruct.dialogue_lines.files = {'train': 'gs://bucket/chain_of_modality-*.jsonl'}
    speech_instruct.dialogue_lines.tokenizer = 'SpeechGPT-7B-cm'

The tasks can be cached. Call these functions in a module of your own and pass it to SeqIO:

    seqio_cache_tasks --module_import=my_tasks --tasks=asr --output_cache_dir=gs://bucket/cached

Then bind `load_host_batches.cache_dir`.
"""

from collections.abc import Callable, Mapping, Sequence

import seqio

from speechgpt_jax.data import preprocessors, records, registry
from speechgpt_jax.data.sources import SHUFFLE_BUFFER, RecordFiles
from speechgpt_jax.data.vocabulary import Vocabulary
from speechgpt_jax.errors import UserError
from speechgpt_jax.evaluation import metrics

DIALOGUE = ("prefix", "plain_text")


def dialogue_lines(
    name: str,
    files: Mapping[str, str],
    tokenizer: str,
    direction: str | None = None,
    on_error: str = "stop",
    metric_fns: Sequence[Callable] = (metrics.answer_accuracy,),
    template: str | None = None,
) -> str:
    """Registers a task of SpeechInstruct records and returns its name.

    Args:
      name: name of the task.
      files: split -> file pattern: JSONL, TFRecord or ArrayRecord with `prefix` and `plain_text`.
      tokenizer: folder with the tokenizer.
      direction: direction of the dialogues to keep, such as "speech_to_text"; None keeps all.
      on_error: "stop" raises before training if a record is bad; "skip" leaves bad records out and
        logs them.
      metric_fns: metrics of the evaluation.
      template: name of one of `prompts.TEMPLATES`, in which the model reads the dialogues; None:
        the one that is saved with the tokenizer.

    Raises:
      UserError: there is no tokenizer in the folder, `direction`, `template` or `on_error` is
        unknown, or the name is illegal or another task's.
    """
    arguments = {
        "files": files,
        "tokenizer": tokenizer,
        "direction": direction,
        "on_error": on_error,
        "metric_fns": list(metric_fns),
        "template": template,
    }

    def register() -> None:
        vocabulary = Vocabulary.from_pretrained(tokenizer, template)
        check = records.check_dialogues(len(vocabulary.unit_ids))
        _add_task(
            name,
            RecordFiles(files, DIALOGUE, check, on_error),
            [preprocessors.only_direction(direction)] if direction else [],
            vocabulary,
            metric_fns,
        )

    return registry.register_once(name, arguments, register)


def tfds_dialogues(
    name: str,
    dataset: str,
    tokenizer: str,
    data_dir: str | None = None,
    direction: str | None = None,
    metric_fns: Sequence[Callable] = (metrics.answer_accuracy,),
    template: str | None = None,
) -> str:
    """Registers a task of a TFDS dataset that was built, and returns its name.

    Args:
      name: name of the task.
      dataset: e.g. "speech_instruct/cross_modal_instruction:1.0.0".
      tokenizer: folder with the tokenizer.
      data_dir: where `tfds build` wrote it.
      direction, metric_fns, template: see `dialogue_lines`.

    Raises:
      UserError: see `dialogue_lines`, or the dataset was not built in `data_dir`.
    """
    arguments = {
        "dataset": dataset,
        "tokenizer": tokenizer,
        "data_dir": data_dir,
        "direction": direction,
        "metric_fns": list(metric_fns),
        "template": template,
    }

    def register() -> None:
        source, num_examples = _open_dataset(dataset, data_dir)
        _add_task(
            name,
            source,
            [preprocessors.only_direction(direction)] if direction else [],
            Vocabulary.from_pretrained(tokenizer, template),
            metric_fns,
            min(num_examples, SHUFFLE_BUFFER),
        )

    return registry.register_once(name, arguments, register)


def _open_dataset(dataset: str, data_dir: str | None) -> tuple[seqio.TfdsDataSource, int]:
    """A TFDS dataset and the number of examples of its largest split."""
    try:
        source = seqio.TfdsDataSource(dataset, data_dir, read_only=True)
        return source, max(map(source.num_input_examples, source.splits))
    except ValueError as error:
        # After its first line, TFDS lists all datasets that it knows.
        problem = str(error).partition("\n")[0].rstrip(".")
        raise UserError(
            f"dataset {dataset!r} is not in {data_dir or 'the default folder of TFDS'} ({problem}):"
            " build it by `tfds build`, then give NAME/CONFIG:VERSION and its --data_dir."
        ) from error


def text_instructions(
    files: Mapping[str, str],
    tokenizer: str,
    name: str = "text_instruction",
    on_error: str = "stop",
    template: str | None = None,
) -> str:
    """Registers a task of records with a written `question` and `answer`; returns its name.

    Arguments and errors are those of `dialogue_lines`.
    """
    arguments = {
        "files": files,
        "tokenizer": tokenizer,
        "on_error": on_error,
        "template": template,
    }

    def register() -> None:
        _add_task(
            name,
            RecordFiles(files, ("question", "answer"), records.check_texts(), on_error),
            [preprocessors.text_instruction],
            Vocabulary.from_pretrained(tokenizer, template),
            [metrics.answer_accuracy],
        )

    return registry.register_once(name, arguments, register)


def _add_task(
    name: str,
    source: seqio.DataSource,
    to_dialogues: Sequence[Callable],
    vocabulary: Vocabulary,
    metric_fns: Sequence[Callable],
    shuffle_buffer_size: int | None = None,
) -> None:
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *to_dialogues,
            preprocessors.tokenize_dialogues,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
        shuffle_buffer_size=shuffle_buffer_size,
        postprocess_fn=metrics.response_parser(vocabulary.tokenizer.template),
        metric_fns=list(metric_fns),
    )
