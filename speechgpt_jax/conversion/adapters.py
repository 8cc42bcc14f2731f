"""LoRA adapters of PEFT <-> a run that trains an adapter on another run.

A run has the same adapter in every layer. The modules and ranks of a PEFT adapter are read from its
weights: `target_modules` may be names, suffixes, full paths or a regex. The embeddings of new
tokens are PEFT's `trainable_token_indices`.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from speechgpt_jax import checkpoints, files
from speechgpt_jax.conversion import (
    grammars,
    key_table,
    llama,
    model_card,
    shards,
    tokenizer_format,
    weights,
)
from speechgpt_jax.conversion.key_table import AS_IS, Row
from speechgpt_jax.conversion.llama_format import LAYER, PART_OF
from speechgpt_jax.errors import UserError, naming
from speechgpt_jax.fields import Fields
from speechgpt_jax.models.layers import LoraConfig
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.training.start import ADAPTER

_NEW_EMBEDDINGS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
_NEW_OUTPUTS = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
TABLE = [
    *(
        Row(
            f"layers.{part}.{name}.lora_{matrix}",
            f"base_model.model.{LAYER}.{part}.{name}.lora_{matrix.upper()}.weight",
        )
        for name, part in PART_OF.items()
        for matrix in "ab"
    ),
    Row("new_embeddings", _NEW_EMBEDDINGS, AS_IS),
    Row("new_outputs", _NEW_OUTPUTS),
]
# "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" -> module, layer, projection, A.
_WEIGHT = re.compile(
    r"base_model\.model\.(model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+))\.lora_([AB])\.weight"
)

# Values of `init_lora_weights` that leave the base unchanged.
_KEEPS_BASE = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
# Values that subtract the initial adapter from the base; PEFT can undo this.
_SUBTRACTS_FROM_BASE = ("pissa", "olora", "corda", "lora_ga")
# Fields of adapter_config.json that extend LoRA; PEFT can merge the result into the weights.
_MERGEABLE = (
    *("use_dora", "use_qalora", "modules_to_save", "lora_bias", "layer_replication"),
    *("target_parameters", "kasa_config", "use_bdlora", "monteclora_config"),
)
# Fields of adapters that depend on the text and so can't be merged.
_DEPENDS_ON_TEXT = ("alora_invocation_tokens", "arrow_config")

_MERGE = (
    "merge it into its base in PEFT (`model.merge_and_unload().save_pretrained(FOLDER)`) and"
    " convert that folder without --base"
)


def from_peft(folder: epath.Path, out: epath.Path, base: epath.Path) -> None:
    """Converts a PEFT adapter to a run of a few MB that builds on the run `base`.

    Args:
      folder: has adapter_config.json and adapter_model.safetensors or .bin.
      out: the new run.
      base: the run that the adapter was trained on.

    Raises:
      UserError: the adapter is damaged, of another kind, or for another base.
    """
    files.refuse_existing(out.parent, out.name)
    fields = Fields.read(
        folder / "adapter_config.json", "the adapter_config.json of a PEFT adapter"
    )
    base_metadata = checkpoints.read_metadata(base)
    base_config = LlamaConfig.from_metadata(base_metadata, base)
    if base_config.lora:
        raise UserError(
            f"{base} has an adapter of its own, and a run has one: merge it first by `convert_llama"
            f" to_hf {base} MERGED --merge` and `convert_llama from_hf MERGED NEW_BASE`, and give"
            " --base=NEW_BASE."
        )
    source = weights.from_folder(folder, ("adapter_model.safetensors", "adapter_model.bin"))
    config = dataclasses.replace(base_config, lora=lora_config(fields, source.shapes, base_config))
    shapes = {n: x.shape for n, x in llama.abstract(config).items() if n.endswith(ADAPTER)}
    frozen_outputs = "new_outputs" in shapes and _NEW_OUTPUTS not in source.shapes
    if frozen_outputs:
        del shapes["new_outputs"]
    try:
        parameters = key_table.read(TABLE, source, shapes)
    except UserError as error:
        raise UserError(f"the adapter does not fit the base {base}: {error}") from error
    if frozen_outputs:
        parameters = itertools.chain(parameters, _outputs_of_base(base, config.new_tokens))
    kept = base_metadata.get("hugging_face", {})
    tokenizer = llama.run_tokenizer(base)
    with files.whole_folder(out) as unfinished:
        metadata = llama.metadata(config, folder, kept)
        checkpoints.save_parameters(unfinished, parameters, metadata, base)
        if tokenizer:
            tokenizer.save_pretrained(unfinished / "tokenizer")


def to_peft(run: epath.Path, out: epath.Path, base: str, context_length: int | None = None) -> None:
    """Exports the adapter of a run as a PEFT folder; the base's weights are not needed.

    Args:
      run: a run that trained only an adapter.
      out: the new folder.
      base: base model for PEFT: the folder to which `llama.to_hf` exported the run's base, or a
        name on the hub.
      context_length: tokens, written to tokenizer_config.json; None keeps the source's.

    Raises:
      UserError: the run has no adapter apart from its base.
    """
    files.refuse_existing(out.parent, out.name)
    trained = checkpoints.Parameters(run, with_bases=False)
    saved = trained.metadata
    config = LlamaConfig.from_metadata(saved, run)
    names = [name for name in trained.shapes if name.endswith(ADAPTER)]
    if not (saved["base"] and names):
        raise UserError(f"{run} has no adapter apart from its base; leave out --base.")
    source = saved.get("hugging_face", {})
    tokenizer = llama.run_tokenizer(run)
    with files.whole_folder(out) as unfinished:
        model_card.write(run, config, tokenizer, unfinished, name=out.name, is_adapter=True)
        arrays = ((name, trained.read(name)) for name in names)
        shards.write_file(
            unfinished / "adapter_model.safetensors", dict(key_table.write(TABLE, arrays))
        )
        fields = adapter_config(config, base)
        shards.write_json(unfinished / "adapter_config.json", fields)
        if tokenizer:
            length = llama.max_length(source, context_length)
            tokenizer_format.write(tokenizer, unfinished, length)
            grammars.write(tokenizer, unfinished)


def lora_config(
    fields: Fields, shapes: Mapping[str, tuple[int, ...]], base: LlamaConfig
) -> LoraConfig:
    """PEFT's adapter -> our config.

    Args:
      fields: content of adapter_config.json.
      shapes: name -> shape of each of the adapter's weights.
      base: config of the base.

    Raises:
      UserError: the adapter is not the same LoRA in every layer, or not for an unchanged base.
    """
    source = fields.source
    _check_variant(fields)
    _check_init(str(fields.get("init_lora_weights", Any, True)).lower(), source)
    alpha_of = _by_module(fields, "alpha_pattern", fields.require("lora_alpha", float), float)
    stated_rank = fields.get("r", int | None)
    rank_of = _by_module(fields, "rank_pattern", stated_rank, int)
    is_target = _target_of_config(fields)
    layers, scales = _modules_in_weights(shapes, is_target, alpha_of, rank_of, source)
    _check_targets(is_target, layers, base.num_layers, source)
    for projection, present in layers.items():
        if missing := set(range(base.num_layers)) - present:
            raise UserError(
                f"{source} leaves {projection} of layer {min(missing)} without an adapter; only the"
                f" same adapter in all {base.num_layers} layers is built here: {_MERGE}."
            )
    if len(scales) != 1:
        found = ", ".join(f"{rank} and {alpha:g}" for rank, alpha in sorted(scales))
        raise UserError(
            f"{source} must have one rank and one alpha, but has {found or 'none'}: {_MERGE}."
        )
    ((rank, alpha),) = scales
    with naming(source):
        return LoraConfig(
            rank=rank,
            alpha=alpha,
            dropout=fields.get("lora_dropout", float, 0.0),
            targets=tuple(sorted(layers)),
            rank_stabilized=fields.get("use_rslora", bool, False),
            new_tokens_from=_new_tokens_from(fields, base),
        )


def _modules_in_weights(
    shapes: Mapping[str, tuple[int, ...]],
    is_target: Callable[[str], bool],
    alpha_of: Callable[[str], float],
    rank_of: Callable[[str], int | None],
    source: object,
) -> tuple[dict[str, set[int]], set[tuple[int, float]]]:
    """Projection -> its layers with an adapter, and all pairs of rank and alpha.

    Raises:
      UserError: the weights are not those of a LoRA that the config describes.
    """
    layers: dict[str, set[int]] = {}
    scales = set()
    for name, shape in shapes.items():
        if name in (_NEW_EMBEDDINGS, _NEW_OUTPUTS):
            continue
        found = _WEIGHT.fullmatch(name)
        if not found:
            raise UserError(
                f"{source}: the weights have {name}, which is not LoRA on a projection of a layer:"
                f" {_MERGE}."
            )
        module, layer, projection, matrix = found.groups()
        layers.setdefault(projection, set()).add(int(layer))
        if len(shape) != 2:
            raise UserError(
                f"{source}: {name} has shape {shape}; expected a matrix: get the file again."
            )
        if not is_target(module):
            raise UserError(
                f"{source} leaves {module} without an adapter (target_modules, exclude_modules,"
                " layers_to_transform), but the weights have one: take both files from the same"
                " adapter."
            )
        if matrix == "A":
            if rank_of(module) not in (None, shape[0]):
                raise UserError(
                    f"{source} gives {module} rank {rank_of(module)}, but its weights have"
                    f" {shape[0]}: take both files from the same adapter."
                )
            scales.add((shape[0], alpha_of(module)))
    return layers, scales


def adapter_config(config: LlamaConfig, base: str) -> dict:
    """Our config -> the fields of adapter_config.json.

    Args:
      config: sizes of a run with an adapter.
      base: base model for PEFT, a folder or a name on the hub.
    """
    lora = config.lora
    assert lora
    new = [*config.new_tokens]
    tables = ["embed_tokens"] if config.tie_embeddings else ["embed_tokens", "lm_head"]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rank_stabilized,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "bias": "none",
        **({"trainable_token_indices": dict.fromkeys(tables, new)} if new else {}),
    }


def _new_tokens_from(fields: Fields, base: LlamaConfig) -> int | None:
    """First token whose embedding the adapter trains; these tokens are the last of the base."""
    indices = fields.get("trainable_token_indices", list[int] | Mapping[str, list[int]] | None)
    if not indices:
        return None
    by_table = indices if isinstance(indices, Mapping) else {"embed_tokens": indices}
    first = (by_table.get("embed_tokens") or [base.vocab_size])[0]
    last_tokens = [*range(first, base.vocab_size)]
    if any(ids != last_tokens for ids in by_table.values()) or not last_tokens:
        raise UserError(
            f"{fields.source} has trainable_token_indices that are not all tokens from one on, up"
            f" to the base's last {base.vocab_size - 1}; only that is built here: {_MERGE}."
        )
    return first


def _outputs_of_base(base: epath.Path, ids: range) -> Iterator[tuple[str, np.ndarray]]:
    """The base's own outputs for new tokens of which the adapter has only the embeddings."""
    kernel = checkpoints.Parameters(base).read("lm_head.kernel")
    yield "new_outputs", np.ascontiguousarray(kernel[:, ids.start : ids.stop])


def _check_variant(fields: Fields) -> None:
    """Raises a UserError unless the adapter is plain LoRA."""
    source = fields.source
    if (kind := fields.get("peft_type", Any)) != "LORA":
        raise UserError(f"{source} has peft_type {kind!r}; only 'LORA' is built here: {_MERGE}.")
    for name in _DEPENDS_ON_TEXT:
        if fields.get(name, Any):
            raise UserError(
                f"{source} has {name}: such an adapter changes with the text and is not built here;"
                " train a plain LoRA adapter instead."
            )
    for name in _MERGEABLE:
        if fields.get(name, Any):
            raise UserError(f"{source} has {name}, which is not built here: {_MERGE}.")
    if (bias := fields.get("bias", Any, "none")) != "none":
        raise UserError(f"{source} trains biases ({bias!r}); here they are frozen: {_MERGE}.")


def _check_init(init: str, source: str) -> None:
    """Raises a UserError where the adapter belongs on a base that its initialisation changed."""
    if init in _KEEPS_BASE:
        return
    if init.startswith(_SUBTRACTS_FROM_BASE):
        raise UserError(
            f"{source} has init_lora_weights {init!r}, which changed the base: save it as plain"
            " LoRA with PEFT's `save_pretrained(FOLDER,"
            " path_initial_model_for_weight_conversion=INITIAL)`, INITIAL being the adapter saved"
            " before training; or save the base that it was trained on, convert that, and set"
            " init_lora_weights to true."
        )
    raise UserError(
        f"{source} has init_lora_weights {init!r}, which changed the base or is not known here:"
        f" {_MERGE}."
    )


def _target_of_config(fields: Fields) -> Callable[[str], bool]:
    """Whether adapter_config.json gives a module of the base an adapter, as PEFT decides it."""
    names = str | list[str] | None
    targets = fields.get("target_modules", names)
    excluded = fields.get("exclude_modules", names) or []
    stated = fields.get("layers_to_transform", int | list[int] | None)
    layers = {stated} if isinstance(stated, int) else set(stated or ())
    patterns = fields.get("layers_pattern", names) or []
    prefixes = [patterns] if isinstance(patterns, str) else patterns
    # PEFT searches a layer's number behind one of the patterns, or behind any name.
    numbers = [rf"(?:.*?\.)?{prefix}\.(\d+)\." for prefix in prefixes] or [r".*?\.[^.]*\.(\d+)\."]
    regexes = [*numbers, *(x for x in (targets, excluded) if isinstance(x, str))]
    for pattern in regexes:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{fields.source} has {pattern!r} among target_modules, exclude_modules and"
                f" layers_pattern; expected names or regular expressions ({error}): correct it, or"
                " get the file again."
            ) from error

    def is_target(module: str) -> bool:
        if _matches(excluded, module):
            return False
        if targets is None or targets == "all-linear":
            return True
        if not _matches(targets, module):
            return False
        if isinstance(targets, str) or not layers:
            return True
        found = next(filter(None, (re.match(number, module) for number in numbers)), None)
        return found is not None and int(found[1]) in layers

    return is_target


def _matches(names: str | list[str], module: str) -> bool:
    """Whether a module is among full names or suffixes, or matches a regular expression."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)


def _check_targets(
    is_target: Callable[[str], bool], layers: Mapping[str, set[int]], num_layers: int, source: str
) -> None:
    """Raises a UserError if a module that the config names has no weights, in any layer."""
    for projection, part in PART_OF.items():
        modules = [f"model.layers.{layer}.{part}.{projection}" for layer in range(num_layers)]
        if projection not in layers and (lost := [*filter(is_target, modules)]):
            raise UserError(
                f"{source} gives {lost[0]} an adapter, but the weights have none: take both files"
                " from the same adapter."
            )


def _by_module(fields: Fields, name: str, default: Any, kind: Any) -> Callable[[str], Any]:
    """Function from the name of a module to its value in `alpha_pattern` or `rank_pattern`."""
    values = []
    for pattern, value in (fields.get(name, Mapping[str, kind] | None) or {}).items():
        try:
            values.append((re.compile(rf"(.*\.)?({pattern})$"), value))
        except re.error as error:
            raise UserError(
                f"{fields.source} has {pattern!r} in {name}; expected a name or a regular"
                f" expression ({error}): correct it, or get the file again."
            ) from error
    # PEFT takes the first pattern that matches.
    return lambda module: next((x for pattern, x in values if pattern.match(module)), default)
