"""The frozen networks that sampling needs, each loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from poet import conditioning, streams
from poet.runs import networks
from poet.streams import Derived
from poet.tasks.resolved import Resolved


class FrozenNetworks:
    """Networks by name (`poet.runs.networks`, or `Stream.network`), those that a model was trained with.

    Args:
      loaded: networks that need no loading.
      made_with: fingerprints of the networks, and of conditions, that the model was trained with; None does not say.
    """

    def __init__(
        self, resolved: Resolved, loaded: Mapping[str, Any] | None = None, made_with: networks.Networks | None = None
    ):
        self.made_with = made_with
        self._resolved, self._given = resolved, dict(loaded or {})
        self._used: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The network of this name; UserError for another one than the model was trained with, or none."""
        if name not in self._used:
            network = self._given.get(name) or self._load(name)
            self.expect(name, network.fingerprint)
            self._used[name] = network
        return self._used[name]

    def _load(self, name: str) -> Any:
        return self._resolved.load(next(s for s in streams.STREAMS.values() if s.network == name))

    @property
    def used(self) -> dict[str, str]:
        """Fingerprints of those that were asked for so far, and of decoders that have one of their own."""
        found = {name: network.fingerprint for name, network in self._used.items()}
        decoders = {name: getattr(network, "decoder_fingerprint", "") for name, network in self._used.items()}
        return found | {networks.DECODER.format(name): own for name, own in decoders.items() if own}

    def expect(self, name: str, fingerprint: str) -> None:
        """Refuses a network that the model was not trained with; what is not known passes."""
        if self.made_with is not None:
            networks.check(self.made_with, {name: fingerprint}, what="the model")

    def expect_rendering(self, derived: Derived, has_depth: bool) -> None:
        """Refuses a condition that is derived in another way than the model was trained with.

        A caller's distances, or those of a network, may stand for the data set's.
        """
        spec, tokenizer = self._resolved.spec.conditioning, self[derived.network].fingerprint
        measured = conditioning.fingerprint(derived.name, spec.replace(depth="dataset"), tokenizer)
        trained = (self.made_with or {}).get(derived.name)
        if not (has_depth or spec.depth not in spec.BUILT_IN) or trained != measured:
            self.expect(derived.name, conditioning.fingerprint(derived.name, spec, tokenizer))
