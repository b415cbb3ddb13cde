"""Makes tests/fixtures/residual_vq.npz: what vector-quantize-pytorch's ResidualVQ does in one step.

    PEER_PYTHON tests/benchmarks/residual_vq_peer.py      (an interpreter with vector-quantize-pytorch)

The same input and codebooks go through `poet.tokenizers.audio.rvq` in tests/tokenizers/audio/test_rvq.py.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from vector_quantize_pytorch import ResidualVQ

LEVELS, CODES, DIM, DECAY = 4, 32, 8, 0.9


def main() -> None:
    torch.manual_seed(0)
    layer = ResidualVQ(
        dim=DIM,
        num_quantizers=LEVELS,
        codebook_size=CODES,
        decay=DECAY,
        threshold_ema_dead_code=0,
        commitment_weight=1.0,
    )
    books = [level._codebook for level in layer.layers]
    for scale, book in enumerate(books):
        vectors = torch.randn(1, CODES, DIM) * 0.6**scale
        usage = torch.rand(1, CODES) * 5 + 1
        book.embed.data.copy_(vectors)
        book.cluster_size.data.copy_(usage)
        book.embed_avg.data.copy_(vectors * usage[..., None])
    before = [book.embed.clone()[0] for book in books]
    usage = [book.cluster_size.clone()[0] for book in books]
    z = torch.randn(6, 40, DIM)
    layer.train()
    quantized, ids, commitment = layer(z)
    out = {
        "z": z,
        "vectors": torch.stack(before),
        "usage": torch.stack(usage),
        "quantized": quantized,
        "ids": ids,
        "commitment": commitment.reshape(-1),
        "vectors_after": torch.stack([book.embed[0] for book in books]),
        "usage_after": torch.stack([book.cluster_size[0] for book in books]),
        "decay": torch.tensor(DECAY),
    }
    file = pathlib.Path(__file__).parents[1] / "fixtures" / "residual_vq.npz"
    np.savez_compressed(file, **{name: value.detach().numpy() for name, value in out.items()})
    print(file, {name: tuple(value.shape) for name, value in out.items()})


if __name__ == "__main__":
    main()
