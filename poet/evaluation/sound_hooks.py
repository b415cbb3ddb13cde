"""What is looked at while the audio tokenizer is trained."""

from __future__ import annotations

import jax
import numpy as np

from poet.distributed import processes
from poet.data.sounds import sound_batches
from poet.spec import Experiment
from poet.tokenizers.audio import spectra, training
from poet.tokenizers.audio.base import AudioTokenizer
from poet.training.loop import Hook, Report
from poet.training.trainable import State

SOUNDS_SHOWN, PICTURE_WINDOW = 4, 512
# Natural logarithm of mel magnitudes that are black and white: -100 dB and 0 dB of full scale.
DARKEST, BRIGHTEST = -11.5, 0.0


def reconstructions(experiment: Experiment) -> Hook:
    """Spectrograms of sounds above those of what the weights make of them, and their mean difference
    in nepers.

    The sounds are of the training split.  Nothing is read if TRAIN.sample_every is 0.
    """
    every, spec = experiment.train.sample_every, experiment.audio_tokenizer
    sounds = _sounds(experiment) if every else None

    def run(state: State, step: int) -> Report:
        del step
        weights = {name: state[name] for name in ("params", "codebooks")}
        params = training.params_of(jax.tree.map(processes.whole, weights))
        if not processes.first():
            return Report()
        tokenizer = AudioTokenizer.from_params(spec, params)
        with processes.alone():
            rebuilt = tokenizer.decode(tokenizer.encode(sounds), sounds.shape[1])
            pictures = [picture(x, spec.sample_rate_hz) for x in (sounds, rebuilt)]
        distance = np.abs(np.subtract(*pictures)).mean() * (BRIGHTEST - DARKEST)
        stacked = np.concatenate([np.concatenate(list(p), axis=1) for p in pictures], axis=0)
        shown = np.round(255 * stacked).astype(np.uint8)
        return Report(
            scalars={"spectrogram_difference": float(distance)},
            images={"spectrograms": np.repeat(shown[..., None], 3, axis=-1)},
        )

    return Hook(name="reconstruction", every=every, fn=run)


def picture(sounds_BxS: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Log-mel spectrograms (B, bands, frames) in 0..1, low bands at the bottom, of int16 sounds."""
    waves = np.float32(sounds_BxS) / 32768
    logs = np.log(np.maximum(spectra.mel(waves, PICTURE_WINDOW, sample_rate_hz), spectra.FLOOR))
    return np.clip((logs - DARKEST) / (BRIGHTEST - DARKEST), 0, 1).swapaxes(1, 2)[:, ::-1]


def _sounds(experiment: Experiment) -> np.ndarray:
    """int16 (B, S) of the sources that are trained on."""
    spec = experiment.tokenizer_train
    train = experiment.audio_train.replace(noise_source="")
    batches = sound_batches(
        spec.folders, spec.split, experiment.audio_tokenizer, train, SOUNDS_SHOWN, seed=1
    )
    return next(batches)["audio"]
