"""Every test process sees eight virtual CPU devices, and compiles with few of LLVM's optimisations.

Compilation is most of the suite's time, and a third shorter that way.
XLA reads the flags when its backend starts.  Processes that tests start inherit them.
"""

import os

os.environ["XLA_FLAGS"] = " ".join((
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=1",
    os.environ.get("XLA_FLAGS", ""),
)).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
