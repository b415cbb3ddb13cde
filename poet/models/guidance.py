"""The scale of guidance as an input of the model, so that guided samples take one pass (guidance-free training,
2501.15420).

A model with `MODEL.guidance_input` reads beta = 1 / scale in (0, 1].  Training mixes what it says under beta with what
it says without text, as beta * with + (1 - beta) * without (`poet.training.losses`), and fits the mixture to the data:
what it says under beta is then without + (with - without) / beta, which is guidance of that scale.

B batch, F features, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from poet.models.declaration import Weight, zeros

# Quarter periods of the waves of beta over (0, 1].
_WAVES = np.array([1.0, 2.0, 4.0, 8.0])
FEATURES = 2 * len(_WAVES)


def declare(width: int, dtype: str) -> Weight:
    """[F, D]: takes features into the residual stream; it begins as if it were not there."""
    return Weight((FEATURES, width), (None, "table_embed"), zeros, dtype)


def features(beta_B: jax.Array, dtype: jnp.dtype | str = "float32") -> jax.Array:
    """[B, F] in `dtype`, all 0 at beta = 1: there the model is the one without this input."""
    angle_BxW = (1 - beta_B.astype(jnp.float32))[:, None] * jnp.asarray(_WAVES * np.pi / 2, jnp.float32)
    return jnp.concatenate([jnp.sin(angle_BxW), 1 - jnp.cos(angle_BxW)], axis=1).astype(dtype)


def sampled(key: jax.Array, text_length_B: jax.Array) -> jax.Array:
    """float32 [B]: beta of each clip of a training batch, uniform in (0, 1]; 1 for a clip whose text is dropped."""
    beta_B = 1 - jax.random.uniform(key, text_length_B.shape)
    return jnp.where(text_length_B > 0, beta_B, 1.0)
