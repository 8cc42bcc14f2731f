"""Selects the CPU where libtpu is installed but no TPU is attached.

JAX would try libtpu first, which prints error lines before JAX falls back to the CPU. Importing
this package selects the CPU at once, unless the environment sets JAX_PLATFORMS.
"""

import glob
import importlib.util
import os
import sys
from pathlib import Path

# Google's other PCI devices are network cards and disks of its virtual machines.
GOOGLE_PCI_VENDOR = "0x1ae0"
TPU_PCI_DEVICES = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def avoid_absent_tpu() -> None:
    """Sets JAX_PLATFORMS=cpu if libtpu is the only installed plugin and there is no TPU."""
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    # With a GPU plugin installed too, JAX must find out which device there is.
    if importlib.util.find_spec("jax_plugins") is not None or has_tpu():
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # JAX reads the environment when it is imported.
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def has_tpu(root: str = "/") -> bool:
    """Whether the kernel shows a TPU: a device node (TPU VM, GKE) or a PCI device."""
    if glob.glob(f"{root}/dev/accel*") or glob.glob(f"{root}/dev/vfio/[0-9]*"):
        return True

    def is_tpu(folder: str) -> bool:
        vendor, device = (Path(folder, name).read_text().strip() for name in ("vendor", "device"))
        return vendor == GOOGLE_PCI_VENDOR and device in TPU_PCI_DEVICES

    return any(map(is_tpu, glob.glob(f"{root}/sys/bus/pci/devices/*")))
