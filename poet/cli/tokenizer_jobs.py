"""The jobs that look at a frozen tokenizer: `poet reconstruct`, `poet tokenizer-eval`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Sequence

from poet.runs import outputs
from poet.spec import Experiment, UserError, choose


def reconstruct(args: Any) -> None:
    """Writes clips as a tokenizer rebuilds them, and prints rate, PSNR and speed."""
    from poet.evaluation import reconstruct as rebuilding
    from poet.tokenizers.video.base import VideoTokenizer

    clips = [Path(clip) for clip in args.clips]
    names = rebuilding.names(clips)
    output = outputs.claim_of(args, outputs.RECONSTRUCTION, [args.tokenizer, *clips])
    options = {name: getattr(args, name) for name in ("chunk_frames", "tile", "overlap")}
    tokenizer = VideoTokenizer.load(args.tokenizer, **options)
    if args.dtype:
        tokenizer = tokenizer.in_dtype(args.dtype)
    size = {name: getattr(args, name) for name in ("height", "width", "frames")}
    with output:
        for clip, name in zip(clips, names):
            video = rebuilding.read(clip, tokenizer, rate_hz=args.fps, **size)
            done = rebuilding.reconstruct(
                tokenizer, video, output.folder / name, name=str(clip), rate_hz=args.fps
            )
            print(dataclasses.replace(done, path=output.where(done.path)))


def tokenizer_evaluate(experiment: Experiment, args: Any) -> None:
    """Scores the tokenizer of TOKENIZER_TRAIN.modality: writes OUT/tokenizer_scores.json and
    pictures, and prints the tables."""
    evaluate_one = {"video": _evaluate_video_tokenizer, "audio": _evaluate_audio_tokenizer}
    evaluate_one[experiment.tokenizer_train.modality](experiment, args)


def _refuse_others(flag: str, given: Sequence[str], allowed: Sequence[str], modality: str) -> None:
    for name in given:
        if name not in allowed:
            raise UserError(
                f"--{flag}={name} is not for TOKENIZER_TRAIN.modality = {modality!r}; give one of "
                f"{', '.join(allowed)}, or the configuration of another modality"
            )


def _evaluate_audio_tokenizer(experiment: Experiment, args: Any) -> None:
    from poet.evaluation import sound_tokenizers
    from poet.evaluation.sets import sounds as sound_sets
    from poet.tokenizers.audio.base import AudioTokenizer

    _refuse_others("set", args.sets, list(sound_sets.SETS), "audio")
    _refuse_others("codec", args.codecs, ["opus", "none"], "audio")
    path = args.tokenizer or experiment.audio_tokenizer.path
    if not path:
        raise UserError("AUDIO_TOKENIZER.path is empty: give --tokenizer=FOLDER")
    output = outputs.claim_of(args, outputs.TOKENIZER_EVALUATION, [path, experiment.eval.source])
    tokenizer = AudioTokenizer.load(path)
    clip = experiment.clip.replace(sample_rate_hz=tokenizer.spec.sample_rate_hz)
    sets, skipped = sound_sets.open_sets(
        args.sets, tokenizer.spec, experiment.eval, clip.samples
    )
    with output:
        result = sound_tokenizers.evaluate(
            tokenizer,
            sets,
            output.folder,
            bit_rates=() if "none" in args.codecs else sound_tokenizers.OPUS_BIT_RATES,
            skipped=skipped,
        )
    print(sound_tokenizers.summary(result))


def _evaluate_video_tokenizer(experiment: Experiment, args: Any) -> None:
    from poet.evaluation import video_tokenizers
    from poet.evaluation.sets import clips as clip_sets
    from poet.tokenizers.video import perceptual
    from poet.tokenizers.video.base import VideoTokenizer

    _refuse_others("set", args.sets, list(clip_sets.SETS), "video")
    _refuse_others("codec", args.codecs, ["x264", "x265", "none"], "video")
    if args.perceptual:
        choose(args.perceptual, perceptual.NETWORKS, "--perceptual")
    spec = experiment.eval
    path = args.tokenizer or experiment.video_tokenizer.path
    output = outputs.claim_of(args, outputs.TOKENIZER_EVALUATION, [path, spec.source])
    names = args.sets or [name for name in clip_sets.SETS if name != "source" or spec.source]
    sets, skipped = clip_sets.open_sets(
        names, experiment.clip, spec.clips, spec.source, spec.split
    )
    depths = {
        name: clip_sets.source_depths(experiment.clip, spec.clips, spec.source, spec.split)
        for name in sets
        if name == "source"
    }
    with output:
        result = video_tokenizers.evaluate(
            VideoTokenizer.load(path),
            sets,
            output.folder,
            perceptual=perceptual.load(args.perceptual) if args.perceptual else None,
            comparators=[name for name in args.codecs or ("x264", "x265") if name != "none"],
            rate_hz=experiment.clip.rate_hz,
            preset=args.preset,
            skipped=skipped,
            conditions=experiment.conditioning,
            depths=depths,
        )
    print(video_tokenizers.summary(result))
