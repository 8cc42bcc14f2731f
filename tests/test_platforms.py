"""With libtpu installed but no TPU attached, nothing is printed about TPUs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speechgpt_jax.platforms import has_tpu

ROOT = Path(__file__).parent.parent


def run(program, **environment):
    clean = {key: value for key, value in os.environ.items() if key != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", program]
    environment = {**clean, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import speechgpt_jax, jax", "import jax, speechgpt_jax"])
def test_libtpu_is_not_initialized(imports):
    assert importlib.util.find_spec("libtpu"), "the test extras install it"
    process = run(f"{imports}; print(jax.default_backend())")
    assert process.stdout == "cpu\n"
    assert process.stderr == ""


def test_jax_platforms_is_obeyed():
    program = "import speechgpt_jax, os; print(os.environ['JAX_PLATFORMS'])"
    assert run(program, JAX_PLATFORMS="tpu,cpu").stdout == "tpu,cpu\n"


@pytest.mark.parametrize("device", ["dev/accel0", "dev/vfio/0"])
def test_device_nodes(device, tmp_path):
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    (tmp_path / "dev" / "vfio" / "vfio").touch()
    assert not has_tpu(str(tmp_path))
    (tmp_path / device).touch()
    assert has_tpu(str(tmp_path))


def test_pci_devices(tmp_path):
    folder = tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x8086\n")
    (folder / "device").write_text("0x0063\n")
    assert not has_tpu(str(tmp_path))
    (folder / "vendor").write_text("0x1ae0\n")
    assert has_tpu(str(tmp_path))
    (folder / "device").write_text("0x0042\n")  # A network card.
    assert not has_tpu(str(tmp_path))
