"""The language model of a checkpoint, ready to sample: the Python API of `poet generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from poet import streams
from poet.checkpoints import checkpoint as checkpoint_lib
from poet.models.stored import stored
from poet.models.transformer import Params, build_model
from poet.runs import networks
from poet.runs.run import Run
from poet.sampling.base import TaskSampler, block_of
from poet.sampling.decode import Decoder, ModelPrograms, SpreadPrograms
from poet.sampling.engine import Codecs
from poet.sampling.frozen import FrozenNetworks
from poet.sampling.plans import Plan
from poet.spec import SampleSpec, UserError, compat
from poet.streams import OUTPUT
from poet.tasks.registry import LANGUAGE_MODEL, TASKS, get_task
from poet.tasks.resolved import Resolved


class Generator(TaskSampler):
    """A trained model with its frozen networks, ready to sample.

    Attributes:
      resolved: the experiment in the checkpoint.
      model, params: the language model; parameters in its compute dtype.
      networks: the frozen networks, which must be those that the model was trained with.

    Args:
      loaded: frozen networks by name (`poet.runs.networks`); the others are loaded when a task first needs them.
      made_with: fingerprints of the frozen networks that the model was trained with; None does not say.
    """

    def __init__(
        self,
        resolved: Resolved,
        params: Params,
        loaded: Mapping[str, Any] | None = None,
        made_with: networks.Networks | None = None,
    ):
        self.resolved = resolved
        self.model = build_model(resolved)
        self.params = jax.jit(self.model.compute_params)(params)
        self.networks = FrozenNetworks(resolved, loaded, made_with)
        self._programs: dict[tuple[Plan, int, int, str], ModelPrograms | SpreadPrograms] = {}
        self._stored: dict[tuple[str, jax.Device | None], tuple[Params, Params]] = {}

    @classmethod
    def from_checkpoint(cls, run: Run, resolved: Resolved | None = None, task: str | None = None) -> Generator:
        """Loads the checkpoint of a run.

        `resolved` replaces the experiment in the checkpoint, e.g. with other sampling settings.  The video tokenizer
        is loaded first, but for a `task` without pictures; other networks when they are needed.

        Raises:
          UserError: damaged, or settings or networks other than those it was trained with.
        """
        trained, what = run.checkpoint.spec, str(run.checkpoint.path)
        resolved = resolved or Resolved(trained)
        compat.check(trained, resolved.spec, "sample", what=what, remedy="leave them as they were trained")
        made_with, loaded = run.checkpoint.networks, {}
        if task is None or networks.VIDEO in get_task(task).frozen_networks:
            loaded[networks.VIDEO] = FrozenNetworks(resolved)[networks.VIDEO]
            networks.check(made_with, {networks.VIDEO: loaded[networks.VIDEO].fingerprint}, what=what)
        params = checkpoint_lib.load_params(run, build_model(resolved).abstract())
        return cls(resolved, params, loaded, made_with)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name for name, task in TASKS.items() if task.network == LANGUAGE_MODEL)

    def codecs(self, task: str, latents: int) -> Codecs:
        return _Codecs(self.networks, self.resolved, latents)

    def programs(self, task: str, plan: Plan, sample: SampleSpec) -> ModelPrograms | SpreadPrograms:
        key = plan, block_of(sample, self.model.dtype), sample.devices, sample.weights
        if key not in self._programs:
            self._programs[key] = self._compiled(*key)
        return self._programs[key]

    def _compiled(self, plan: Plan, block: int, count: int, kind: str) -> ModelPrograms | SpreadPrograms:
        """Programs of a plan on the first `count` devices of this process, which compile when they first run."""
        devices, width = jax.local_devices(), self.resolved.spec.text.width
        if count > len(devices):
            raise UserError(f"SAMPLE.devices = {count}: this process has {len(devices)}")
        decoder = Decoder(self.model, plan)
        each = [
            ModelPrograms(decoder, params, width, block, loop_params)
            for params, loop_params in (
                self._weights(kind, device) for device in (devices[:count] if count > 1 else [None])
            )
        ]
        return each[0] if count == 1 else SpreadPrograms(each)

    def _weights(self, kind: str, device: jax.Device | None) -> tuple[Params, Params]:
        """Parameters stored as `SampleSpec.weights` says, and the same for a loop; on this device, or the default."""
        if (kind, device) not in self._stored:
            params = jax.jit(stored, static_argnums=1)(self.params, kind)
            params = params if device is None else jax.device_put(params, device)
            self._stored[kind, device] = params, jax.jit(self.model.by_layer)(params)
        return self._stored[kind, device]


class _Codecs(NamedTuple):
    """`poet.sampling.engine.Codecs` of frozen networks; `latents` open the output."""

    networks: FrozenNetworks
    resolved: Resolved
    latents: int

    def tokenize(self, name: str, media: np.ndarray) -> np.ndarray:
        stream, fmt = streams.in_layout(name), self.resolved.format
        parts = len(stream.ids(self.resolved.vocabulary))
        latents = self.latents if name == stream.called(OUTPUT) else None
        return stream.encode(self.networks[stream.network], media, fmt, parts, latents)

    def detokenize(self, name: str, codes_NxM: np.ndarray) -> Any:
        stream = streams.in_layout(name)
        return stream.detokenize(self.networks[stream.network], codes_NxM, self.resolved.format)
