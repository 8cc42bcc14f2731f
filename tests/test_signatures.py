"""Every public function of the package and the benchmarks states its types."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("speechgpt_jax", "tasks", "tests/benchmarks")
FILES = sorted(
    f for d in FOLDERS for f in (ROOT / d).rglob("*.py") if not f.name.startswith("test_")
)
CALLED = ("__init__", "__call__")


def public_functions(node: ast.AST, inside_class: bool = False) -> Iterator[tuple]:
    """Public functions of a module and of its public classes, and whether they are methods."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child, inside_class=True)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            not child.name.startswith("_") or child.name in CALLED
        ):
            yield child, inside_class


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_public_functions_have_types(file):
    for function, is_method in public_functions(ast.parse(file.read_text())):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        if is_method and named and named[0].arg in ("self", "cls"):
            named = named[1:]
        untyped = [argument.arg for argument in named if argument.annotation is None]
        where = f"{file}:{function.lineno} {function.name}"
        assert not untyped, f"{where}: no types for {', '.join(untyped)}"
        assert function.returns or function.name == "__init__", f"{where}: no type of the result"
