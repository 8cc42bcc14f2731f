"""Model flops utilization (MFU) of a training run.

    MFU = tokens/s * flops per token / (number of devices * peak flops/s of a device)

(Chowdhery et al. 2022, appendix B). Padding is not counted. The flops of a token are those of the
model without recomputation, in units of a forward pass: one for the forward pass, one for the
gradients of activations and one for those of weights. Frozen weights have no gradient, so training
an adapter counts two; the adapter's own products are not counted.
"""

from collections.abc import Iterable

import jax

from speechgpt_jax.models.llama import matmul_flops_per_token
from speechgpt_jax.models.llama_config import LlamaConfig

# Dense bfloat16 FLOP/s by JAX's `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,  # A device is one of a chip's two cores.
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(devices: Iterable[jax.Device]) -> float | None:
    """Peak FLOP/s summed over `devices`; None if one of them, such as a CPU, isn't in the table."""
    peaks = [_peak(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if len(known) == len(peaks) else None


def _peak(kind: str) -> float | None:
    known = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def training_flops_per_token(model: LlamaConfig, length: int, trainable: str) -> float:
    """Flops per token of a train step on rows of `length` tokens; `trainable` is `lm.train`'s."""
    passes = 3 if trainable == "all" else 2
    # A float, because those of a 7B model exceed JAX's int32.
    return float(passes * matmul_flops_per_token(model, length))
