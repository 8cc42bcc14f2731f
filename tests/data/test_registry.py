"""Tasks that gin registers: once per name, whatever the number of references."""

import pytest
import seqio

from speechgpt_jax import gin_utils
from speechgpt_jax.data.registry import register_once
from speechgpt_jax.errors import UserError
from speechgpt_jax.training.inputs import load_host_batches, load_host_held_out
from tasks import mixtures, modality_adaptation, speech_instruct
from tests.data.conftest import GOLDEN

ROWS = """
from __gin__ import dynamic_registration
from speechgpt_jax.training import inputs
from tasks import modality_adaptation
inputs.load_host_batches.mixture = @modality_adaptation.unit_lines()
inputs.load_host_held_out.mixture = @modality_adaptation.unit_lines()
"""


def test_the_same_arguments_register_a_task_once():
    calls = []

    def register():
        calls.append(1)
        seqio.MixtureRegistry.add("test_once", [("demo_asr", 1)])

    for _ in range(2):
        assert register_once("test_once", {"files": {"train": "a"}}, register) == "test_once"
    assert calls == [1]
    with pytest.raises(UserError, match=r"'test_once' is registered with files=.*'a'.*have f.*'b'"):
        register_once("test_once", {"files": {"train": "b"}}, register)
    with pytest.raises(UserError, match="'demo_asr' is taken by another task"):
        register_once("demo_asr", {}, register)
    with pytest.raises(UserError, match=r"'my-task' must have letters"):
        register_once("my-task", {}, register)


@pytest.mark.slow
def test_one_task_serves_training_and_held_out_data(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("<sosp><1><2><3><eosp>\n" * 8)
    files = {split: str(tmp_path / f"{split}.txt") for split in ("train", "test")}
    (tmp_path / "run.gin").write_text(ROWS)
    bindings = [
        f"modality_adaptation.unit_lines.files = {files}",
        f"modality_adaptation.unit_lines.tokenizer = {GOLDEN!r}",
        "modality_adaptation.unit_lines.name = 'test_twice'",
    ]
    gin_utils.parse([str(tmp_path / "run.gin")], bindings)
    shape = {"batch_size": 8, "sequence_length": 8}
    batches = gin_utils.call(load_host_batches, **shape)
    held_out = gin_utils.call(load_host_held_out, **shape)
    assert next(batches).keys() == held_out.batches[0].keys()


def test_tasks_of_different_features_are_not_mixed(asr_and_tts, tmp_path):
    (tmp_path / "units.txt").write_text("<sosp><1><eosp>\n")
    files = {"train": str(tmp_path / "units.txt")}
    units = modality_adaptation.unit_lines(files, GOLDEN, "test_only_units")
    with pytest.raises(UserError, match="has inputs, targets and 'test_only_units' targets; "):
        mixtures.mix("test_never", [asr_and_tts[0], units], [1, 1])


@pytest.mark.parametrize("dataset", ["speech_instruct/chain_of_modality:1.0.0", "speech_instruct"])
def test_a_dataset_that_was_not_built_is_one_line(tmp_path, dataset):
    with pytest.raises(
        UserError, match=rf"{dataset}' is not in {tmp_path} \(.*tfds build"
    ) as error:
        speech_instruct.tfds_dialogues("test_never_built", dataset, GOLDEN, str(tmp_path))
    assert len(str(error.value)) < 400
