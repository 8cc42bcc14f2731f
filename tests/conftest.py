"""Environment of all tests: programs compile fast, and each of them only once."""

import os
import tempfile

# Inherited by pytest's workers and by the processes that tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Small models run for milliseconds but compile for seconds, mostly in the fusion emitters.
    flags = os.environ.get("XLA_FLAGS", "")
    fast = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {fast}"
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")  # Removed when this process ends.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled.name)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
