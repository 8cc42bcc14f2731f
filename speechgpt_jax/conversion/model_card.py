"""The README.md of an exported model: its shape, training stages, measured figures and usage."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from speechgpt_jax import checkpoints
from speechgpt_jax.errors import UserError
from speechgpt_jax.files import read_json
from speechgpt_jax.models.llama import param_count
from speechgpt_jax.models.llama_config import LlamaConfig
from speechgpt_jax.tokenizer import Tokenizer
from speechgpt_jax.training.progress import read_metrics

CARD = """---
library_name: {library}
tags: [speech, speechgpt, {tag}]
---
# {name}

A LLaMA that reads and writes speech as units such as `<sosp><17><103><eosp>`. Made with
speechgpt_jax after SpeechGPT (Zhang et al. 2023, arXiv 2305.11000).

{shape}

## Stages

{stages}

## Figures

{figures}

## Use

```python
{usage}
```

The tokenizer puts bos, if the model has one, in front of a prompt, splits text at added tokens and
drops the white space around them. Prompts must have the form of the training data, which
`tokenizer.apply_chat_template(messages, tokenize=False)` gives them.

## Configuration of the last stage

```
{config}
```
"""
FULL_USAGE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")"""
ADAPTER_USAGE = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoPeftModelForCausalLM.from_pretrained("{name}")"""


def write(
    run: epath.Path,
    config: LlamaConfig,
    tokenizer: Tokenizer | None,
    folder: epath.Path,
    *,
    name: str,
    is_adapter: bool,
) -> None:
    """Writes the README.md of a run's newest checkpoint.

    Args:
      run: a run, or one of its checkpoints.
      config: sizes of the exported model.
      tokenizer: the run's, or None.
      folder: folder for README.md.
      name: name of the model.
      is_adapter: whether the export is an adapter without its base.
    """
    tokens = {"tokens": f"{config.vocab_size:,}"}
    if tokenizer:
        tokens["units"] = f"{len(tokenizer.unit_ids):,}"
    shape = {
        "parameters": f"{param_count(config):,} with padding rows",
        "layers": config.num_layers,
        "width": config.hidden_size,
        **tokens,
    }
    card = CARD.format(
        library="peft" if is_adapter else "transformers",
        tag="lora" if is_adapter else "llama",
        name=name,
        shape=_table(["what", "value"], shape.items()),
        stages=_table(["run", "data", "steps", "loss at the end"], stages(run)),
        figures=_figures(run),
        usage=(ADAPTER_USAGE if is_adapter else FULL_USAGE).format(name=name),
        config=checkpoints.read_metadata(run)["config"].strip() or "(none was saved)",
    )
    (folder / "README.md").write_text(card)


def stages(run: epath.Path) -> list[tuple[str, str, int | str, str]]:
    """(name, data, steps, last loss) of the run and of the runs it started from, oldest first."""
    return [
        (
            folder.name,
            bindings.get("load_host_batches.mixture", "not known"),
            bindings.get("train.steps", "not known"),
            _last_loss(folder),
        )
        for folder, bindings in reversed(list(_ancestors(run)))
    ]


def _ancestors(run: epath.Path | str | None) -> Iterator[tuple[epath.Path, dict]]:
    """Folder and gin bindings of the run and of the runs it started from, newest first.

    Ends at the first run whose checkpoint is gone or damaged, or that came before: a run may have
    been continued in place.
    """
    seen = set()
    while run is not None:
        try:
            folder, config = checkpoints.run_folder(run), checkpoints.read_metadata(run)["config"]
        except UserError:
            return
        if folder in seen:
            return
        seen.add(folder)
        bindings = _bindings(config)
        yield folder, bindings
        run = checkpoints.base_of(run) or bindings.get("train.start_from")


def _bindings(config_text: str) -> dict:
    """Bindings of an operative gin file: "lm.train.steps = 250" -> {"train.steps": 250}."""
    bindings = {}
    text = config_text.replace("\\\n", "")  # Gin continues long lines.
    for name, value in re.findall(r"^(?:[\w.]+\.)?(\w+\.\w+) = (.+)$", text, re.MULTILINE):
        try:
            bindings[name] = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):
            if value.strip().startswith("@"):
                bindings[name] = value.strip()
    return bindings


def _last_loss(folder: epath.Path) -> str:
    losses = [line["loss"] for line in read_metrics(folder) if "loss" in line]
    return f"{losses[-1]:.3f}" if losses else "not known"


def _figures(run: epath.Path) -> str:
    path = checkpoints.run_folder(run) / "evaluation.json"
    if not path.exists():
        return "None: `python -m speechgpt_jax.evaluate` was not run before the export."
    rows = [
        (split, task, metric, f"{value:.3f}")
        for split, tasks in read_json(path, "figures of speechgpt evaluate").items()
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
    ]
    return _table(["split", "task", "figure", "value"], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
