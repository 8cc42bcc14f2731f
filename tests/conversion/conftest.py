"""A LLaMA in the layout of the released SpeechGPT, converted to a run, and exported again."""

import pytest
import torch

from speechgpt_jax.conversion import llama
from tests.conversion.released import SMALL, write_released
from tests.models.hugging_face import reference


@pytest.fixture(scope="session")
def theirs():
    """A model of transformers whose weights are float16 numbers."""
    model = reference(SMALL)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


@pytest.fixture(scope="session")
def released(tmp_path_factory, theirs):
    return write_released(tmp_path_factory.mktemp("released") / "SpeechGPT-cm", theirs)


@pytest.fixture(scope="session")
def run(tmp_path_factory, released):
    """The released folder as a run."""
    out = tmp_path_factory.mktemp("runs") / "cm"
    llama.from_hf(released, out, "float32")
    return out


@pytest.fixture(scope="session")
def exported(tmp_path_factory, run):
    out = tmp_path_factory.mktemp("exported") / "cm"
    llama.to_hf(run, out)
    return out
