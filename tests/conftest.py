"""Environment of all tests: programs compile fast, and each of them only once."""

import gc
import os
import tempfile
from pathlib import Path

# Inherited by pytest's workers and by the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Small models run for milliseconds but compile for seconds, mostly in the fusion emitters.
    flags = os.environ.get("XLA_FLAGS", "")
    fast = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    # Generating the code of a small program in several parts takes longer than in one.
    os.environ["XLA_FLAGS"] = f"{flags} {fast} --xla_cpu_parallel_codegen_split_count=1"
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")  # Removed when this process ends.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled.name)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    # A bucket that refuses a request is asked again at once, instead of after a second or two.
    os.environ.setdefault("GCS_RETRY_CONFIG_INIT_DELAY_TIME_US", "0")
    # The threads of torch wait for each other with the core that another worker needs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Looking for plugins of hypothesis in all installed packages takes it two seconds.
    os.environ.setdefault("HYPOTHESIS_NO_PLUGINS", "1")

# Tracing makes many objects that live; by default Python looks through them after every 700.
gc.set_threshold(100_000)


# Files with tests of half a minute. Begun last, one would keep the other workers waiting.
LONG = ("test_commands.py", "test_hosts.py", "test_measure_accelerator.py", "test_precompile.py")


def pytest_sessionfinish():
    """Leaves the objects of a whole run, which Python would look through for seconds at the end."""
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Begins with the longest tests."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_ignore_collect(collection_path, config):
    """Ignores files whose tests are all slow when these are left out.

    Importing what such files test (torch, transformers, servers) takes each of pytest's workers
    longer than all fast tests together.
    """
    if config.option.markexpr != "not slow":
        return None
    if collection_path.is_dir():
        files = list(collection_path.rglob("test_*.py"))
    else:
        files = [collection_path] if collection_path.match("test_*.py") else []
    return True if files and all(map(_is_slow, files)) else None


def _is_slow(file: Path) -> bool:
    return "\npytestmark = pytest.mark.slow\n" in file.read_text()
