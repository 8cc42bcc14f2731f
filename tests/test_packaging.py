"""Packaging: extras, the wheel, and the console command."""

import ast
import functools
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from speechgpt_jax import cli, errors

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = PROJECT["dependencies"]
# Modules that import these name them in messages of their own.
OPTIONAL = {"lz4"}
OWN_MESSAGE = {"onnxruntime", "sounddevice"}


def _extra(name: str) -> list[str]:
    """Requirements of an extra, including those of the extras that it names."""
    lines = []
    for line in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            lines += [line for extra in sorted(requirement.extras) for line in _extra(extra)]
        else:
            lines.append(line)
    return lines


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


@functools.cache
def _needs(distribution: str) -> frozenset[str]:
    """Names of all distributions that installing one installs, itself included."""
    found, unseen = set(), [distribution]
    while unseen:
        name = unseen.pop()
        if name in found:
            continue
        found.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # For another platform.
            continue
        for text in requirements:
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                unseen.append(_name(text))
    return frozenset(found)


def _installed_by(requirements: Iterable[str]) -> set[str]:
    return set().union(*(_needs(_name(requirement)) for requirement in requirements))


@functools.cache
def _distributions() -> dict[str, set[str]]:
    """Library -> names of the distributions that hold it."""
    return {
        library: {_name(name) for name in names}
        for library, names in importlib.metadata.packages_distributions().items()
    }


def _run(code: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


# Importing what the distributions named in the arguments don't hold fails, as if not installed.
ONLY = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
missing = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Missing())
"""


def _missing_without(extras: Iterable[str]) -> str:
    wanted = BASE + [line for extra in extras for line in _extra(extra)]
    installed = _installed_by(wanted) | {"speechgpt-jax"}
    return ",".join(lib for lib, names in _distributions().items() if not names & installed)


# ---- versions and extras -------------------------------------------------------------------------


def test_requirements_lock_what_pyproject_asks_for():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    locked = {_name(line): Requirement(line) for line in lines if not line.startswith("#")}
    makefile = (ROOT / "Makefile").read_text()
    extras = re.findall(r"--extra (\w+)", makefile)
    for text in BASE + [line for extra in extras for line in _extra(extra)]:
        wanted = Requirement(text)
        assert locked[_name(text)].specifier == wanted.specifier, f"{text}: call `make lock`"
    assert all(re.fullmatch("==[^=,*]+", str(line.specifier)) for line in locked.values())


@pytest.mark.slow
def test_every_import_has_its_extra():
    """The base or an extra installs each library that is imported; EXTRAS has all of an extra."""
    base = _installed_by(BASE)
    installed = base | _installed_by(_extra("all") + _extra("test"))
    ours = {"speechgpt_jax", "tasks", "tools"}
    for folder in ours:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module]
                for library in {name.partition(".")[0] for name in names} - ours:
                    if library not in sys.stdlib_module_names | OPTIONAL:
                        found = _distributions().get(library, set())
                        assert found & installed, f"{file} imports {library}"
                        if not found & base:
                            assert library in errors.EXTRAS.keys() | OWN_MESSAGE, library


@pytest.mark.slow
def test_each_library_is_in_the_extra_that_is_named_when_it_is_missing():
    for library, extras in errors.EXTRAS.items():
        for extra in extras.split(","):
            assert _distributions()[library] & _installed_by(_extra(extra)), library
        assert not _distributions()[library] & _installed_by(BASE), library


def _import_with_extras(modules: str, extras: Iterable[str], cwd: Path) -> None:
    code = f"{ONLY}\nsys.path.insert(0, {str(ROOT)!r})\nimport {modules}"
    result = _run(code, cwd, _missing_without(extras))
    assert result.returncode == 0, result.stderr


def test_inference_needs_no_extra(tmp_path):
    _import_with_extras("speechgpt_jax.infer, tools.synthesize", [], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules, extra",
    [
        ("speechgpt_jax.train", "train"),
        ("speechgpt_jax.evaluate", "train"),
        ("tools.extract_units", "corpus"),
        ("tools.convert_hubert, tools.convert_llama", "convert"),
        ("speechgpt_jax.serving.app", "serve"),
        ("speechgpt_jax.evaluation.spoken, speechgpt_jax.evaluation.encoder", "train,recognisers"),
    ],
)
def test_programs_need_only_their_extra(modules, extra, tmp_path):
    _import_with_extras(modules, extra.split(","), tmp_path)


# ---- the console command -------------------------------------------------------------------------


THIS_CHECKOUT = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
COMMAND = f"{THIS_CHECKOUT}from speechgpt_jax import cli; cli.main()"


def test_help_names_every_program_and_imports_none(tmp_path):
    check = "assert not {'absl', 'jax', 'numpy', 'tensorflow'} & set(sys.modules)"
    result = _run(f"{COMMAND}\n{check}", tmp_path, "--help")
    assert result.returncode == 0, result.stderr
    for name, module in cli.find_programs().items():
        (line,) = re.findall(rf"^  {name} +(.+)$", result.stdout, re.MULTILINE)
        assert line.endswith(".") and len(line) <= 100, f"first line of the docstring of {module}"


def test_arguments_reach_the_program(tmp_path):
    for name in ("launch-slurm", "launch_slurm"):
        result = _run(COMMAND, tmp_path, name, "--help")
        assert result.returncode == 0, result.stderr
        assert "--nodes" in result.stdout


def test_unknown_command_is_one_line(tmp_path):
    result = _run(COMMAND, tmp_path, "trian")
    assert result.returncode == 1
    assert result.stderr == "Error: speechgpt trian: no such command; see speechgpt --help.\n"


@pytest.mark.parametrize(
    "start, missing, extra",
    [
        (f"{COMMAND}", "tensorflow", "train"),
        (
            "import runpy; runpy.run_module('tools.convert_llama', run_name='__main__')",
            "gguf",
            "convert",
        ),
        (
            "import runpy; runpy.run_module('speechgpt_jax.serve', run_name='__main__')",
            "uvicorn",
            "serve",
        ),
        (
            "import runpy, sys; sys.argv += ['--wandb=project', '--output_dir=run'];"
            "runpy.run_module('speechgpt_jax.train', run_name='__main__')",
            "wandb",
            "wandb",
        ),
    ],
)
def test_missing_extra_is_one_line(start, missing, extra, tmp_path):
    arguments = ["evaluate", "--run=.", "--tasks=a"] if start == COMMAND else []
    result = _run(ONLY + THIS_CHECKOUT + start, tmp_path, missing, *arguments)
    assert result.returncode == 1
    assert result.stderr == (
        f"Error: {missing} is not installed; "
        f"{sys.executable} -m pip install -e '{ROOT}[{extra}]'.\n"
    )


def test_without_a_checkout_the_extra_is_that_of_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "speechgpt_jax" / "errors.py"))
    assert errors.install_command("serve").startswith("pip install 'WHEEL[serve]'")


# ---- the image -----------------------------------------------------------------------------------


DOCKERFILE = ROOT / "tools" / "Dockerfile"


def _copied() -> set[str]:
    """Names that the Dockerfile copies from the checkout."""
    lines = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.M)
    return {name for line in lines for name in line.split()}


def test_hadolint_finds_nothing():
    hadolint = Path(sys.prefix) / "bin" / "hadolint"
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def _is_ignored(path: str, patterns: Iterable[str]) -> bool:
    """Whether Docker leaves a file out of the build context: the last match of it or a parent."""
    parents = [path, *map(str, Path(path).parents)]
    ignored = False
    for pattern in patterns:
        regex = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?")
        regex = regex.replace(r"\*", "[^/]*")
        if any(re.fullmatch(regex, parent) for parent in parents if parent != "."):
            ignored = not pattern.startswith("!")
    return ignored


def test_the_build_context_is_what_the_image_copies():
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.split() or ["pyproject.toml", "tools/__init__.py", "tests/conftest.py"]
    for file in files:
        assert _is_ignored(file, patterns) == (file.partition("/")[0] not in _copied()), file
    for file in (
        *(".venv/bin/python", ".venv-3.13/lib/a.py", ".git/HEAD", "runs/stage1/metrics.jsonl"),
        *("tools/__pycache__/a.pyc", "speechgpt_jax/data/__pycache__/a.pyc"),
        *("speechgpt_jax.egg-info/PKG-INFO", "build/lib/tasks/a.py"),
    ):
        assert _is_ignored(file, patterns), file


@pytest.mark.slow
def test_the_image_s_packages_resolve(tmp_path):
    """uv finds versions of all packages for an empty environment, without installing them."""
    uv = Path(sys.prefix) / "bin" / "uv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "empty"], check=True)
    given = re.findall(r"uv pip install --system --no-cache (.+)", DOCKERFILE.read_text())
    assert len(given) == 2
    install = [uv, "pip", "install", "--dry-run", "--python", tmp_path / "empty"]
    started = {}
    for accelerator in ("tpu", "gpu"):
        words = shlex.split(" ".join(given).replace("${ACCELERATOR}", accelerator))
        started[accelerator] = subprocess.Popen(
            [*install, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
    found = {accelerator: process.communicate()[1] for accelerator, process in started.items()}
    for accelerator, package in (("tpu", "libtpu"), ("gpu", "jax-cuda13-plugin")):
        if re.search("error sending request|are you offline", found[accelerator]):
            pytest.skip("the package index can't be reached")
        assert started[accelerator].returncode == 0, found[accelerator]
        assert f" + {package}==" in found[accelerator]


def test_the_image_installs_what_the_checkout_has():
    text = DOCKERFILE.read_text()
    assert all((ROOT / name).exists() for name in _copied())
    assert {"pyproject.toml", "speechgpt_jax", "gin", "tasks", "tools"} <= _copied()
    (version,) = re.findall(r"^FROM python:([\d.]+)", text, re.M)
    assert version in SpecifierSet(PROJECT["requires-python"])
    for accelerator in ("tpu", "gpu"):
        extras = re.findall(r"\.\[([^]]+)\]", text)[0].replace("${ACCELERATOR}", accelerator)
        assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys()
    (uv,) = re.findall(r"uv==[\d.]+", text)
    assert uv in (ROOT / "Makefile").read_text()


# ---- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Folder of the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in ("speechgpt_jax", "tasks", "tools", "gin"):
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, folder / "source"], check=True)
    (file,) = folder.glob("*.whl")
    zipfile.ZipFile(file).extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_wheel_holds_recipes_assets_and_programs(wheel):
    def files(folder: Path, *patterns: str) -> set[Path]:
        return {f.relative_to(folder) for pattern in patterns for f in folder.rglob(pattern)}

    package = wheel / "speechgpt_jax"
    assert files(package / "gin", "*.*") == files(ROOT / "gin", "*.gin")
    assert files(package / "assets", "*.*") == files(ROOT / "speechgpt_jax/assets", "*.*")
    page = "serving/page"
    assert files(package / page, "*.*") == files(ROOT / "speechgpt_jax" / page, "*.*")
    for folder in ("speechgpt_jax", "tasks", "tools"):
        assert files(wheel / folder, "*.py") == files(ROOT / folder, "*.py")


@pytest.mark.slow
def test_wheel_trains_a_recipe_from_an_empty_folder(wheel, tmp_path):
    code = f"""
import atexit, sys
sys.path.insert(0, {str(wheel)!r})
# Nothing imports it unless it is asked for.
atexit.register(lambda: print("wandb" in sys.modules))
from speechgpt_jax import cli, errors
assert cli.__file__.startswith({str(wheel)!r})
cli.main()
"""
    arguments = ["train", "--gin_file=gin/runs/demo_stage1.gin", "--output_dir=run"]
    small = ["--gin.lm.train.steps=1", "--gin.LlamaConfig.num_layers=1"]
    result = _run(code, tmp_path, *arguments, *small)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("False\n")
    assert (tmp_path / "run/checkpoints/1").exists() or list((tmp_path / "run").rglob("1"))
