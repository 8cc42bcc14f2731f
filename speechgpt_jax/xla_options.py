"""XLA's compiler options, where something is faster than the defaults."""

from collections.abc import Mapping

import jax

from speechgpt_jax.errors import UserError

Value = str | int | float | bool

# All-gathers of weights overlap with computation: the default on v5e, not on v4 and v5p.
_ASYNCHRONOUS_GATHERS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}


def for_training(platform: str, dtype: str) -> dict[str, str]:
    """Options of a train step on "tpu", "gpu" or "cpu" of a model whose activations are `dtype`."""
    if platform == "cpu":
        # Reductions by YNNPACK save 1 to 2 % of a step. Its products of 16 bits are twice as fast
        # as XLA's own, but those of float32 make a step about a sixth slower.
        return _ynnpack("REDUCE") if dtype == "float32" else _ynnpack("REDUCE", "INDIVIDUAL_DOT")
    return _ASYNCHRONOUS_GATHERS if platform == "tpu" else {}


def check(options: Mapping[str, Value], device: jax.Device) -> None:
    """Raises a UserError if the compiler for a device doesn't know one of the options."""
    for name, value in options.items():
        if not (name.startswith("xla_") and isinstance(value, Value)):
            raise UserError(
                "xla_options must be a dict such as {'xla_tpu_scoped_vmem_limit_kib': 65536}, got"
                f" {name!r}: {value!r}."
            )
        nothing = jax.jit(
            lambda x: x,
            in_shardings=jax.sharding.SingleDeviceSharding(device),
            compiler_options={name: value},
        )
        try:
            nothing.lower(jax.ShapeDtypeStruct((), "float32")).compile()
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"the compiler for {device.platform} refuses the option {name} = {value!r} of"
                f" xla_options ({reason})."
            ) from error


def for_decoding(platform: str) -> dict[str, str]:
    """Options of the programs that write tokens on "tpu", "gpu" or "cpu"."""
    # YNNPACK's products would pack all weights anew for every token of a batch.
    return _ynnpack("REDUCE") if platform == "cpu" else {}


def for_speech_on_cpu(dtype: str, *, single_core: bool) -> dict[str, bool | str]:
    """Options of an encoder or vocoder on a CPU.

    Args:
      dtype: type of the factors of matrix products.
      single_core: the program runs on a device with a single thread.
    """
    options: dict[str, bool | str] = {}
    if single_core:
        # Loops are not split over threads either.
        options["xla_cpu_multi_thread_eigen"] = False
    if dtype == "float32":
        # XLA's own float32 products are faster than YNNPACK's. Those of bfloat16 are slower, so
        # there the default stays.
        options |= _ynnpack("REDUCE")
    return options


def _ynnpack(*kinds: str) -> dict[str, str]:
    """Lets YNNPACK, a library of kernels for CPUs, compute operations of these kinds, no others."""
    names = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
    return {"xla_cpu_experimental_ynn_fusion_type": names}
