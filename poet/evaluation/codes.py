"""How well the codes of a tokenizer use its codebook."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

USAGE_NOTE = (
    "Usage is distinct codes over all codes; usage of reachable is distinct codes over those that "
    "as many tokens drawn uniformly would be expected to show. The entropy is that of the code "
    "counts, which is too low where tokens are few beside the codes."
)


def usage_statistics(ids: np.ndarray, codes: int) -> dict[str, Any]:
    """What integer codes of any shape show of a codebook of `codes` entries.

    `usage` is distinct codes over all codes.  `usage_of_reachable` is distinct codes over
    `reachable_codes`, and may slightly exceed 1.  `entropy_bits` is that of the empirical
    distribution, log2(codes) at most.
    """
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / ids.size
    return {
        "tokens": int(ids.size),
        "codes": codes,
        "codes_used": len(counts),
        "usage": len(counts) / codes,
        "usage_of_reachable": len(counts) / reachable_codes(ids.size, codes),
        # Not -0.0 where one code is all there is.
        "entropy_bits": abs(float((shares * np.log2(shares)).sum())),
    }


def reachable_codes(tokens: int, codes: int) -> float:
    """Expected number of distinct codes among `tokens` uniform draws: K (1 - (1 - 1/K)^tokens)."""
    return -codes * math.expm1(tokens * math.log1p(-1 / codes))
