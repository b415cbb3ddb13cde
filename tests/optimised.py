"""Programs of tests that XLA optimises as it does for users.

`conftest.py` has everything compiled as fast as possible.  That costs time where a program runs often, and bits where
two programs are to round alike: `optimised.jit` is for those.
"""

from __future__ import annotations

import functools

import jax

OPTIONS = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
jit = functools.partial(jax.jit, compiler_options=OPTIONS)
