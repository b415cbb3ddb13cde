"""The one place where the data room opens TensorFlow and seqio: late, once, and away from the GPU.

`import seqio` takes seconds, and TensorFlow would otherwise reserve accelerator memory that JAX
needs.
"""

from __future__ import annotations

import functools
from types import ModuleType


@functools.cache
def tensorflow() -> ModuleType:
    """TensorFlow with every accelerator hidden from it."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf


@functools.cache
def seqio() -> ModuleType:
    """seqio, imported after TensorFlow has been kept off the accelerators."""
    tensorflow()
    import seqio

    return seqio
