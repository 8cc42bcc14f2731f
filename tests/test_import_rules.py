"""Import rules: which packages of the project may import which others, and which libraries."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "speechgpt_jax"

LEAVES = {
    "errors",
    "limits",
    "files",
    "local_copies",
    "manifests",
    "arguments",
    "annotations",
    "fields",
    "malloc",
    "shipped",
    "processes",
    "compilation_cache",
    "unit_text",
    "prompts",
    "tokenizer",
    "xla_options",
}
ROOT_MODULES = LEAVES | {"sharding", "checkpoints"}
MAINS = {"cli", "train", "evaluate", "infer", "chat", "serve", "precompile", "demo"}

# Room or module -> what it may import of ours, besides itself.
ALLOWED = {
    "errors": set(),
    "platforms": set(),
    "files": {"errors"},
    "local_copies": {"errors", "files"},
    "manifests": {"errors", "files"},
    "limits": {"errors"},
    "arguments": {"errors", "files", "limits"},
    "compilation_cache": {"arguments", "files"},
    "task_modules": {"errors"},
    "malloc": set(),
    "shipped": set(),
    "processes": {"errors"},
    "xla_options": {"errors"},
    "unit_text": set(),
    "prompts": {"errors", "unit_text"},
    "tokenizer": {"errors", "files", "fields", "prompts", "shipped"},
    "sharding": {"errors", "limits"},
    "checkpoints": {"errors", "limits", "files", "local_copies", "sharding"},
    "annotations": set(),
    "fields": {"errors", "annotations", "files", "limits"},
    "gin_utils": {"errors", "arguments", "annotations", "files"},
    "speech": LEAVES,
    "data": LEAVES,
    "models": LEAVES | {"sharding"},
    "training": ROOT_MODULES | {"models", "data", "speech"},
    "decoding": ROOT_MODULES | {"models", "speech"},
    "serving": ROOT_MODULES | {"decoding", "speech"},
    "evaluation": ROOT_MODULES | {"data", "models", "decoding", "speech"},
    "conversion": ROOT_MODULES | {"models", "speech", "training", "decoding"},
    "corpus": ROOT_MODULES | {"speech", "data", "models", "decoding"},
    "demo_world": ROOT_MODULES | {"corpus", "speech", "data"},
    "compilation": ROOT_MODULES | {"models", "training", "decoding"},
    "launch": LEAVES | {"gin_utils"},
    # A task names its metric functions, as SeqIO has it.
    "tasks": LEAVES | {"data", "evaluation.metrics"},
}

# Library -> where alone it may be imported.
FENCES = {
    "tensorflow": {"data", "tasks", "evaluation", "demo_world", "tools"},
    "tensorflow_text": {"data"},
    "seqio": {"data", "tasks", "evaluation"},
    "apache_beam": {"corpus"},
    "torch": {"conversion", "tools"},
    "transformers": {"conversion", "tools"},
    "gin": {"gin_utils", *MAINS},
    "orbax": {"checkpoints"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "pydantic": {"serving"},
    "pydantic_core": {"serving"},
    "prometheus_client": {"serving"},
    "wandb": {"training"},
}


def _files() -> list[Path]:
    return sorted(f for d in (PACKAGE, ROOT / "tasks", ROOT / "tools") for f in d.rglob("*.py"))


def _room(file: Path) -> str:
    """speechgpt_jax/data/x.py -> data, speechgpt_jax/train.py -> train, tasks/x.py -> tasks."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "speechgpt_jax" else parts[0]


def _imports(file: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_within(name: str, allowed: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in allowed)


@pytest.mark.parametrize("file", _files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_rooms(file):
    room = _room(file)
    if room in MAINS or room in ("tools", "__init__"):
        return
    assert room in ALLOWED, f"{room} is a new room: say in this test what it may import"
    for name in _imports(file):
        top, _, rest = name.partition(".")
        assert top not in ("tools", "tests"), f"{room} imports {name}"
        if top == "speechgpt_jax":
            assert _is_within(rest, ALLOWED[room] | {room}), f"{room} imports {name}"
        elif top == "tasks":
            assert room == "tasks", f"{room} imports {name}"


@pytest.mark.parametrize("file", _files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_fences(file):
    room = _room(file)
    for name in _imports(file):
        library = name.partition(".")[0]
        allowed = FENCES.get(library, {room})
        assert room in allowed, f"{room} imports {library}, which stays in {sorted(allowed)}"
