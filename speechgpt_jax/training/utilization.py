"""How much of the devices' arithmetic a training run uses: the model flops utilization, MFU.

    MFU = tokens a second * flops a token / (number of devices * peak flops of a device)

(Chowdhery et al. 2022, appendix B). Tokens are those that are no padding. The flops of a token are
those of the model, as if nothing were computed again in the backward pass: the forward pass once,
and twice more backwards, for the gradients of activations and of weights. Frozen weights have no
gradient: an adapter's step counts two passes, and the adapter's own products nothing.
"""

from collections.abc import Iterable

import jax

from speechgpt_jax.models.llama import LlamaConfig, matmul_flops_per_token

# Dense bfloat16 products a second, from the vendors' data sheets; by JAX's name of the device.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(devices: Iterable[jax.Device]) -> float | None:
    """Of all devices together, a second; None if one of them, such as a CPU, isn't in the table."""
    peaks = [_peak(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None


def _peak(kind: str) -> float | None:
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def training_flops_per_token(model: LlamaConfig, length: int, trainable: str) -> float:
    """Of one step, for rows of `length` tokens and what is `trainable` (see train_step)."""
    passes = 3 if trainable == "all" else 2
    # A 7B model's don't fit into the int32 that JAX would make of an integer.
    return float(passes * matmul_flops_per_token(model, length))
