"""Every test process sees eight virtual CPU devices, and compiles with few of LLVM's optimisations.

Compilation is most of the suite's time, and a third shorter that way; what one process has compiled
the others load.  XLA reads the flags when its backend starts.  Processes that tests start inherit
them, as do the workers of pytest-xdist.
"""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = " ".join((
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=1",
    os.environ.get("XLA_FLAGS", ""),
)).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="poet_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
