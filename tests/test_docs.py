"""Commands, links and tables in the READMEs, recipes and docstrings agree with the code."""

import ast
import collections
import datetime
import re
import shlex
import tomllib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from speechgpt_jax import cli
from tests import processes
from tests.benchmarks import docs_table
from tests.command_lines import Command, mistakes

ROOT = docs_table.ROOT
DOCUMENTS = list(docs_table.documents())

_FENCED = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`((?:\.venv/bin/)?python -m [^`]+)`")
_COMMAND = re.compile(r"\s*(?:taskset -c \d+ )?(?:\.venv/bin/)?(python -m |speechgpt )(.*)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Files and folders that the reader brings: <!-- given: recordings dialogues.tsv -->
_GIVEN = re.compile(r"<!-- given: (.*?) -->")
_PLACEHOLDER = re.compile(r"[A-Z_]+|gs://\S+|/scratch/\S+")
_FIGURE = re.compile(r"[~≈]?\d[\d.,]*(e\d+)?( ?(%|s|ms|GB|GiB|times|minutes))?( ?[/+] ?\d.*)?")

INPUT_FLAGS = {
    *("audio", "base", "dialogues", "human_prompts", "hubert", "input", "manifest", "people"),
    *("run", "start_from", "targets", "text", "units", "vocoder"),
}
OUTPUT_FLAGS = {"output", "output_dir", "work_dir"}


def code_lines(path: Path) -> list[str]:
    """Lines of code of a README, a recipe's header or a docstring; continued lines are joined."""
    text = path.read_text()
    if path.suffix == ".md":
        found = [m[1] for m in _FENCED.finditer(text)]
        found += [m[1] for m in _INLINE.finditer(_FENCED.sub("", text))]
    elif path.suffix == ".gin":
        found = [re.sub(r"^# *(Command: +)?", "", text, flags=re.MULTILINE)]
    else:
        found = [ast.get_docstring(ast.parse(text)) or ""]
    return [line for code in found for line in code.replace("\\\n", " ").splitlines()]


def commands(path: Path) -> list[Command]:
    """All commands of a document; what a launcher passes to a main is one of its own.

    Lines that leave something out ("...") or name alternatives ("[--merge]") are skipped.
    """
    document, found = str(path.relative_to(ROOT)), []
    for line in code_lines(path):
        match = _COMMAND.match(line)
        if not match or "..." in line or "[" in line:
            continue
        module, *arguments = shlex.split(match[2], comments=True)
        assert module != "pip", f"{line}: write .venv/bin/pip, whose commands the tests don't run"
        if match[1] == "speechgpt ":
            module = cli.find_programs()[module]
        if "--" in arguments:
            split = arguments.index("--")
            launcher = Command(document, module, tuple(arguments[:split]))
            main = launcher.flags().get("module", "speechgpt_jax.train")
            found.append(Command(document, main, tuple(arguments[split + 1 :])))
        found.append(Command(document, module, tuple(arguments)))
    return found


def documented() -> list[Path]:
    """READMEs, recipes, and the mains, whose docstrings are their help."""
    patterns = ("gin/runs/*.gin", "tools/*.py", "speechgpt_jax/*.py", "tests/benchmarks/*.py")
    return [*DOCUMENTS, *(path for pattern in patterns for path in sorted(ROOT.glob(pattern)))]


ALL_COMMANDS = sorted({c for path in documented() for c in commands(path)}, key=str)


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.slow  # Every main imports its libraries.
def test_command_lines_parse():
    # Gin knows all that was imported before, so each main that reads gin files gets a process.
    reads_gin = {command.module for command in ALL_COMMANDS if "gin_file" in command.flags()}
    groups = collections.defaultdict(list)
    for command in ALL_COMMANDS:
        groups[command.module if command.module in reads_gin else ""].append(command)
    with ProcessPoolExecutor(2, mp_context=processes.CONTEXT, max_tasks_per_child=1) as pool:
        found = zip(groups.values(), pool.map(mistakes, groups.values()))
        rows = [row for group, texts in found for row in zip(map(str, group), texts)]
    assert {command: text for command, text in rows if text} == {}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_inputs_exist_or_are_made_before(path):
    """Every input is in the repository, given, a placeholder, or made by a command above."""
    text = path.read_text()
    known = {name for names in _GIVEN.findall(text) for name in names.split()}
    if "make demo" in text:
        known.add("runs/demo")

    def check(value, line):
        parents = [value, *map(str, Path(value).parents)]
        in_project = value.split("/")[0] in ("gin", "speechgpt_jax", "tasks", "tests", "tools")
        exists = in_project and (ROOT / value).exists()
        assert exists or known & set(parents) or _PLACEHOLDER.fullmatch(value), f"{value} in {line}"

    for line in code_lines(path):
        if "python -m" not in line:
            known.update(re.findall(r"> (\S+)", line))
            continue
        _, _, module, *arguments = shlex.split(line, comments=True)
        command = Command(str(path), module, tuple(arguments))
        for name, value in command.flags().items():
            is_text = name == "text" and module != "tools.train_tokenizer"
            is_number = value.isdecimal()  # Of units, for example.
            if (name in INPUT_FLAGS and not is_text and not is_number) or name == "gin_file":
                check(value, line)
        *inputs, output = command.positionals() or [""]
        for value in inputs:
            if "." in value or "/" in value:
                check(value, line)
        known.update({output, *(v for k, v in command.flags().items() if k in OUTPUT_FLAGS)} - {""})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_folder_is_written_twice(path):
    """Two commands of the same program with other arguments would clash in the same folder."""
    written = {}
    for line in code_lines(path):
        if "python -m" in line and "..." not in line:
            _, _, module, *arguments = shlex.split(line, comments=True)
            command = Command(str(path), module, tuple(arguments))
            step = tuple(p for p in command.positionals() if "." not in p and "/" not in p)
            for name, value in command.flags().items():
                if name in OUTPUT_FLAGS and not _PLACEHOLDER.fullmatch(value):
                    first = written.setdefault((module, step, name, value), line)
                    assert first == line, f"{value} is written by {first} and by {line}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_name_the_interpreter_of_the_set_up(path):
    """Debian has no `python`; gin/README.md says what recipes mean by it."""
    for code in _FENCED.findall(path.read_text()):
        assert not re.search(r"^ *python3? ", code, re.MULTILINE), code


@pytest.mark.slow  # Imports TensorFlow.
def test_tasks_have_the_splits_that_commands_name():
    import seqio

    import tasks  # noqa: F401 (registers them)

    named = 0
    for command in ALL_COMMANDS:
        flags = command.flags()
        names = flags.get("tasks") or flags.get("prompts_task")
        for name in names.split(",") if names else ():
            splits = seqio.get_mixture_or_task(name).splits
            assert flags.get("split", "test") in splits, f"{command}: {name} has {sorted(splits)}"
            named += 1
    assert named > 4


def test_named_tests_exist():
    """`pytest FILE -k WORD` in a document selects a test."""
    named = [command for command in ALL_COMMANDS if command.module == "pytest"]
    assert named
    for command in named:
        (file, word) = [argument for argument in command.arguments if argument != "-k"]
        tests = re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
        assert any(word in test for test in tests), command


def test_named_extras_exist():
    """`pip install -e '.[EXTRAS]'` names extras of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for path in documented():
        for extras in re.findall(r"'\.\[([^]]+)\]'", path.read_text()):
            assert {*extras.split(",")} <= project["optional-dependencies"].keys(), path


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z_]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = {m for line in code_lines(path) for m in re.findall(r"make (\w+)", line)}
        assert named <= targets, path


# ---- text ----------------------------------------------------------------------------------------


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(path):
    for link in _LINK.findall(path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, link


def test_the_tree_of_the_readme_exists():
    """Every name in the annotated tree is a file or folder at its place."""
    text = (ROOT / "README.md").read_text()
    [tree] = [code for code in _FENCED.findall(text) if code.startswith("gin/")]
    folders: list[tuple[int, Path]] = [(-1, ROOT)]
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        names = re.match(r"(\S+ )*\S+(?=  |$)", line.strip())[0].split()
        for name in names:
            assert (folders[-1][1] / name).exists(), line
        folders.append((indent, folders[-1][1] / names[0]))


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_of_figures_are_written_by_commands(path):
    text = path.read_text()
    assert text == docs_table.render(text), "run python -m tests.benchmarks.docs_table"
    outside = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
    for line in outside.splitlines():
        if line.startswith("|"):
            figures = [c for c in map(str.strip, line.split("|")) if _FIGURE.fullmatch(c)]
            assert not figures, f"a figure typed by hand: {line}"


def test_every_result_is_shown():
    text = "".join(path.read_text() for path in DOCUMENTS)
    shown = set(re.findall(r"<!-- table: (\w+) -->", text))
    assert shown == {path.stem for path in docs_table.RESULTS.glob("*.json")}


def test_update_replaces_the_table_of_its_name(tmp_path, monkeypatch):
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- table: speed -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(docs_table, "RESULTS", tmp_path)
    monkeypatch.setattr(docs_table, "documents", lambda: [document])
    monkeypatch.setattr(docs_table, "this_command", lambda: "python -m bench")
    table = docs_table.Table("speed", ["work", "s"])
    table.add("read", "1.5")
    table.update_docs(machine="a machine")
    today = datetime.date.today().isoformat()
    assert document.read_text() == (
        "before\n<!-- table: speed -->\n| work | s |\n| --- | ---: |\n| read | 1.5 |\n\n"
        f"`python -m bench`, a machine, {today}\n<!-- end -->\nafter\n"
    )
