"""Programs on simulated devices: JAX takes their number only when a process starts."""

import os
import subprocess
import sys


def run_on_eight_devices(program: str, *arguments: os.PathLike) -> subprocess.CompletedProcess[str]:
    """Runs a Python program with arguments in a process with eight CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
