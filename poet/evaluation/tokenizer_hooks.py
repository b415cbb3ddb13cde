"""Hooks of `poet tokenizer-train`: reconstructions of the current weights, as a picture and as a metric."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from poet.data.sounds import sound_batches
from poet.distributed import processes
from poet.evaluation import metric
from poet.evaluation.hooks import CLIPS_SHOWN, stacked
from poet.evaluation.metrics import pixels
from poet.spec import UserError
from poet.store.raw import usable
from poet.store.sources import open_source
from poet.tasks.resolved import Resolved
from poet.tokenizers.audio import spectra, training
from poet.tokenizers.audio.base import AudioTokenizer
from poet.tokenizers.video.base import VideoTokenizer
from poet.training.trainable import Hook, Report, State

PICTURE_WINDOW = 512
# Natural logarithm of mel magnitudes that are black and white: -100 dB and 0 dB of full scale.
DARKEST, BRIGHTEST = -11.5, 0.0


def reconstructions(resolved: Resolved) -> Hook:
    """Clips or sounds above what the weights make of them, and how far they are from each other.

    Nothing is read if TRAIN.sample_every is 0.  Weights of a video tokenizer that training starts from are
    looked at before the first step.

    Raises:
      UserError: no clip of the first folder of TOKENIZER_TRAIN can be read.
    """
    spec = resolved.spec
    is_video, every = spec.tokenizer_train.modality == "video", spec.train.sample_every
    read, state_keys, report = (_clips, ("ema",), _video) if is_video else (_sounds, ("params", "codebooks"), _audio)
    media = read(resolved) if every else None

    def run(state: State, step: int) -> Report:
        del step
        weights = jax.tree.map(processes.whole, {key: state[key] for key in state_keys})
        if not processes.first():
            return Report()
        with processes.alone():
            return report(resolved, weights, media)

    at_start = is_video and bool(spec.tokenizer_train.init_from)
    return Hook(name="reconstruction", every=every, fn=run, at_start=at_start)


def _clips(resolved: Resolved) -> np.ndarray:
    """uint8 [N, T, H, W, 3], N up to CLIPS_SHOWN, of the first folder that is trained on: of EVAL.split where it
    has that, else of the training split."""
    spec, clip = resolved.spec.tokenizer_train, resolved.spec.clip
    folder = next(iter(spec.folders))
    try:
        source = open_source(folder, resolved.spec.eval.split, clip)
    except UserError:
        source = open_source(folder, spec.split, clip)
    items = source.read(0, min(2 * CLIPS_SHOWN, len(source)))
    clips = [item.video for item in usable(items)][:CLIPS_SHOWN]
    if not clips:
        raise UserError(f"no clip of {folder} can be read")
    return np.stack(clips)


def _video(resolved: Resolved, weights: Any, clips_NxTxHxWx3: np.ndarray) -> Report:
    """Reconstructions of clips by the averaged weights, and their PSNR."""
    tokenizer = VideoTokenizer.from_params(resolved.spec.video_tokenizer, weights["ema"])
    rebuilt = tokenizer.decode(tokenizer.encode(clips_NxTxHxWx3))
    found = metric.measure({"truth": clips_NxTxHxWx3, "other": rebuilt}, [pixels.PSNR])
    images = {"clips": stacked(clips_NxTxHxWx3, rebuilt)}
    return Report(scalars={"psnr_db": found["psnr_db"].summary.value}, images=images)


def _sounds(resolved: Resolved) -> np.ndarray:
    """int16 [N, S] of the sources that are trained on."""
    spec, train = resolved.spec.tokenizer_train, resolved.spec.audio_train.replace(noise_source="")
    audio = resolved.spec.audio_tokenizer
    return next(sound_batches(spec.folders, spec.split, audio, train, CLIPS_SHOWN, seed=1))["audio"]


def _audio(resolved: Resolved, weights: Any, sounds_NxS: np.ndarray) -> Report:
    """Spectrograms of sounds above those of what the weights make of them, and their mean difference in nepers."""
    spec = resolved.spec.audio_tokenizer
    tokenizer = AudioTokenizer.from_params(spec, training.params_of(weights))
    rebuilt = tokenizer.decode(tokenizer.encode(sounds_NxS), sounds_NxS.shape[1])
    pictures = [picture(x, spec.sample_rate_hz) for x in (sounds_NxS, rebuilt)]
    distance = np.abs(np.subtract(*pictures)).mean() * (BRIGHTEST - DARKEST)
    both = np.concatenate([np.concatenate(list(p), axis=1) for p in pictures], axis=0)
    shown = np.repeat(np.round(255 * both).astype(np.uint8)[..., None], 3, axis=-1)
    return Report(scalars={"spectrogram_difference": float(distance)}, images={"spectrograms": shown})


def picture(sounds_BxS: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Log-mel spectrograms (B, bands, frames) in 0..1, low bands at the bottom, of int16 sounds."""
    waves = np.float32(sounds_BxS) / 32768
    logs = np.log(np.maximum(spectra.mel(waves, PICTURE_WINDOW, sample_rate_hz), spectra.FLOOR))
    return np.clip((logs - DARKEST) / (BRIGHTEST - DARKEST), 0, 1).swapaxes(1, 2)[:, ::-1]
