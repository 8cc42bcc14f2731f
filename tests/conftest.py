"""What every test runs under: programs that compile fast, and each of them once."""

import os
import tempfile

# Processes that tests start inherit this, and so do pytest's workers.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Small models run for moments and compile for seconds, most of them in the fusion emitters.
    flags = os.environ.get("XLA_FLAGS", "")
    fast = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {fast}"
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")  # Goes with this process.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled.name)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
