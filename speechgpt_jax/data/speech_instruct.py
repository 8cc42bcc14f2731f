"""SpeechInstruct as a TFDS dataset, built offline from local files.

    tfds build speech_instruct/cross_modal_instruction \\
        --imports=speechgpt_jax.data.speech_instruct --manual_dir=FOLDER --data_dir=DATA

FOLDER holds `cross_modal_instruction.jsonl` (the split `train`), or `...-train.jsonl`,
`...-test.jsonl` and so on, in shards too (`...-train-00000-of-00008.jsonl`); JSONL, TFRecord and
ArrayRecord are read. `tfds_dialogues` of tasks/speech_instruct.py makes a task of the dataset.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

import tensorflow_datasets as tfds

from speechgpt_jax.data.records import check_dialogues
from speechgpt_jax.data.sources import RecordFiles
from speechgpt_jax.errors import UserError


@dataclasses.dataclass
class SpeechInstructConfig(tfds.core.BuilderConfig):
    """One of SpeechInstruct's datasets.

    Attributes:
      num_units: number of units; a dialogue with any other unit stops the build.
    """

    num_units: int = 1000


class SpeechInstruct(tfds.core.GeneratorBasedBuilder):
    """Dialogues of speech and text: `prefix` and `plain_text`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        SpeechInstructConfig(name="cross_modal_instruction"),
        SpeechInstructConfig(name="chain_of_modality"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "--manual_dir names a folder with CONFIG.jsonl or CONFIG-SPLIT*.jsonl."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {"prefix": tfds.features.Text(), "plain_text": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(texts),
            homepage="https://arxiv.org/abs/2305.11000",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        folder, config = dl_manager.manual_dir, self.builder_config.name
        files = defaultdict(list)
        for file in sorted(folder.glob(f"{config}*")):
            named = re.fullmatch(rf"{config}(?:-([a-z_]+))?(?:-\d+-of-\d+)?\..*", file.name)
            if named:
                files[named[1] or "train"].append(str(file))
        if not files:
            raise UserError(f"{folder} has neither {config}.jsonl nor {config}-SPLIT*.jsonl.")
        return {split: self._generate_examples(names) for split, names in files.items()}

    def _generate_examples(self, files: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
        check = check_dialogues(self.builder_config.num_units)
        source = RecordFiles({"all": files}, ("prefix", "plain_text"), check)
        dataset = source.get_dataset("all", shuffle=False)
        yield from enumerate(tfds.as_numpy(dataset))
