"""A token store as a whole: what goes in comes out, shuffled, hashed, and the same after a kill."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import seqio
import store_fakes as fakes

from poet import cli
from poet.spec import StoreSpec, UserError
from poet.store import framing, reader, writer
from poet.store import manifest as manifests
from poet.store import repair as repairing

CLIP = fakes.CLIP
TRAIN, VALIDATION = 22, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """22 + 6 grey clips, two of them unusable."""
    folder = tmp_path_factory.mktemp("clips")
    fakes.write_folder(folder, [10 * k for k in range(TRAIN)])
    fakes.write_folder(folder, [10 * k + 5 for k in range(VALIDATION)], "validation", "v")
    (folder / "clip_004.mp4").write_bytes(b"no video")
    whole = (folder / "clip_011.mp4").read_bytes()
    (folder / "clip_011.mp4").write_bytes(whole[: len(whole) - 40])
    return folder


def store_spec(source: pathlib.Path, path: pathlib.Path, **changes: Any) -> StoreSpec:
    spec = StoreSpec(source=str(source), path=str(path), clips_per_shard=6, batch=4, max_skipped=0.2)
    return spec.replace(**changes)


def tokenize(spec: StoreSpec, killed_at: int = -1, **changes: Any) -> manifests.Manifest:
    tokenizer = fakes.MeanTokenizer(killed_at=killed_at)
    given = {"tokenizer": tokenizer, "text": fakes.LetterEncoder(), "clip": CLIP, **changes}
    return fakes.tokenize(spec, given.pop("clip"), progress=False, **given)


@pytest.fixture(scope="module")
def store(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("store") / "s"
    tokenize(store_spec(source, path))
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def examples(path: pathlib.Path, split: str) -> list[dict[str, Any]]:
    return list(reader.dataset(str(path), split).as_numpy_iterator())


def keys(path: pathlib.Path, split: str = "train") -> list[str]:
    return [example["key"].decode() for example in examples(path, split)]


# --------------------------------------------------------------------------------------- contents


def test_every_usable_clip_comes_back(store: pathlib.Path) -> None:
    found = {e["key"].decode(): e for e in examples(store, "train")}
    assert set(found) == {f"clip_{k:03d}.mp4" for k in range(TRAIN)} - {"clip_004.mp4", "clip_011.mp4"}
    for k in (k for k in range(TRAIN) if k not in (4, 11)):
        example, caption = found[f"clip_{k:03d}.mp4"], f"grey {10 * k}"
        assert example["caption"].decode() == caption
        assert np.abs(example["video"] - 10 * k).max() <= 2  # what H.264 loses of a grey
        letters = np.array([ord(c) for c in caption[:8]], np.float16)
        assert np.array_equal(example["text_states"], np.repeat(letters[:, None], 4, axis=1))
        assert example["text_length"] == len(letters)


def test_codes_are_flattened_in_the_order_t_h_w(tmp_path: pathlib.Path) -> None:
    ramp = np.arange(8).reshape(2, 2, 2).repeat(8, axis=1).repeat(8, axis=2)
    video = np.repeat(ramp[[0, 1, 1, 1, 1], ..., None], 3, axis=-1).astype(np.uint8)
    fakes.write_tfds(tmp_path / "d", {"train": [video]})
    tokenize(store_spec(tmp_path / "d", tmp_path / "s", splits=("train",)))
    (example,) = examples(tmp_path / "s", "train")
    assert example["video"].tolist() == list(range(8))


def test_static_shapes_and_seqio_agree(store: pathlib.Path) -> None:
    spec = reader.dataset(str(store), "train").element_spec
    shapes = {name: (tuple(s.shape), s.dtype.name) for name, s in spec.items()}
    assert shapes == {
        "key": ((), "string"),
        "caption": ((), "string"),
        "video": ((8,), "int32"),
        "text_states": ((None, 4), "float16"),
        "text_length": ((), "int32"),
    }
    # read_only: the other way of loading asks for the name of a registered data set.
    source = seqio.TfdsDataSource(tfds_data_dir=str(store), splits=("train", "validation"), read_only=True)
    assert source.num_input_examples("train") == TRAIN - 2
    through_seqio = source.get_dataset("validation", shuffle=False)
    assert through_seqio.element_spec["video"] == spec["video"]
    seen = sorted(e["key"].decode() for e in through_seqio.as_numpy_iterator())
    assert seen == [f"v_{k:03d}.mp4" for k in range(VALIDATION)]
    assert len(source.list_shards("train")) == 4


def test_an_empty_caption_has_no_states(tmp_path: pathlib.Path) -> None:
    fakes.write_folder(tmp_path / "d", [10, 20])
    (tmp_path / "d" / "captions.jsonl").unlink()
    tokenize(store_spec(tmp_path / "d", tmp_path / "s", splits=("train",)))
    for example in examples(tmp_path / "s", "train"):
        assert example["text_states"].shape == (0, 4) and example["text_length"] == 0


def test_manifest_counts_skipped_truncated_and_shards(store: pathlib.Path) -> None:
    manifest = reader.load_manifest(str(store))
    train = manifest.splits["train"]
    broken, cut = train.skipped
    assert broken.key == "clip_004.mp4" and broken.reason.startswith("undecodable")
    # A cut file is known by a damaged last frame or by the frames that lack.
    assert cut.key == "clip_011.mp4"
    assert cut.reason.startswith(("truncated", "corrupt", "undecodable"))
    assert train.clips == sum(shard.clips for shard in train.shards) == TRAIN - 2
    assert {shard.clips for shard in train.shards} == {5}
    assert train.truncated_captions == 0
    assert manifest.video.grid == (2, 2, 2) and manifest.video.fingerprint == "mean-tokenizer-1"
    assert manifest.clip == CLIP


def test_captions_too_long_for_the_encoder_are_counted(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    short = fakes.LetterEncoder(length=7)  # 'grey 100' and above have eight letters
    manifest = tokenize(store_spec(source, tmp_path / "s"), text=short)
    assert manifest.splits["train"].truncated_captions == TRAIN - 10 - 1


def test_unigram_entropy_is_that_of_the_stored_codes(store: pathlib.Path) -> None:
    video = np.stack([e["video"] for e in examples(store, "train")])
    statistics = reader.load_manifest(str(store)).splits["train"].statistics["video"]
    for codes, entropy_nats in ((video, statistics.entropy_nats), (video[:, :4], statistics.first_frame_entropy_nats)):
        counts = np.array(list(collections.Counter(codes.ravel().tolist()).values()))
        shares = counts / codes.size
        assert entropy_nats == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-12)
    assert (statistics.codes, statistics.used) == (video.size, len(np.unique(video)))


# ---------------------------------------------------------------------------------------- shuffle


def test_shuffle_is_global_seeded_and_blind_to_the_units_of_work(tmp_path: pathlib.Path) -> None:
    count = 120
    videos = [fakes.flat_video(k) for k in range(count)]
    fakes.write_tfds(tmp_path / "source", {"train": videos}, shard_clips=40)

    def order(name: str, **changes: Any) -> list[int]:
        spec = store_spec(tmp_path / "source", tmp_path / name, splits=("train",), **changes)
        tokenize(spec)
        return [int(key.split("/")[1]) for key in keys(tmp_path / name)]

    shuffled = order("a", clips_per_shard=20)
    assert sorted(shuffled) == list(range(count))
    # A random order puts neighbours 40 places apart on average; a shuffle within the 20 clips of
    # a unit of work could not pass 7.
    places = np.argsort(shuffled)
    assert np.abs(np.diff(places)).mean() > 25
    for shard in np.split(np.array(shuffled), 6):
        assert len(set(shard // 20)) >= 3
    assert order("b", clips_per_shard=60, batch=7) == shuffled
    assert order("c", clips_per_shard=20, seed=1) != shuffled


# ----------------------------------------------------------------------------------------- resume


def test_a_kill_in_any_batch_changes_nothing(source: pathlib.Path, store: pathlib.Path, tmp_path: pathlib.Path) -> None:
    # Units of work are 8 clips in two batches: three of train, one of validation.
    batches = 8
    for killed_at in range(batches):
        spec = store_spec(source, tmp_path / str(killed_at))
        with pytest.raises(fakes.Killed):
            tokenize(spec, killed_at=killed_at)
        with pytest.raises(UserError, match="did not finish"):
            reader.load_manifest(spec.path)
        tokenize(spec)
        assert contents(tmp_path / str(killed_at)) == contents(store)


def test_a_kill_before_any_rename_changes_nothing(
    source: pathlib.Path, store: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    """Every file appears by a rename, so these are all the points of both phases."""
    rename, kills = os.replace, 0
    for index in range(100):
        spec = store_spec(source, tmp_path / str(index))
        left = [index]

        def rename_or_die(*paths: Any) -> None:
            if left[0] == 0:
                raise fakes.Killed
            left[0] -= 1
            rename(*paths)

        monkeypatch.setattr(os, "replace", rename_or_die)
        try:
            tokenize(spec)
            break
        except fakes.Killed:
            kills += 1
        finally:
            monkeypatch.setattr(os, "replace", rename)
        tokenize(spec)
        assert contents(tmp_path / str(index)) == contents(store)
    # The plan; 3 + 1 ranges with examples and index; 4 + 1 shards; the manifest.
    assert kills == 1 + 2 * 4 + 5 + 1


def test_finished_ranges_are_not_encoded_again(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    spec = store_spec(source, tmp_path / "s")
    with pytest.raises(fakes.Killed):
        tokenize(spec, killed_at=5)  # two of the four units of work are complete by then
    rest = fakes.MeanTokenizer()
    tokenize(spec, tokenizer=rest)
    assert rest.batches == 4
    again = fakes.MeanTokenizer(killed_at=0)
    tokenize(spec, tokenizer=again)  # a finished store asks for nothing


def test_leftovers_of_a_dead_process_are_removed(
    source: pathlib.Path, store: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    spec = store_spec(source, tmp_path / "s")
    with pytest.raises(fakes.Killed):
        tokenize(spec, killed_at=5)
    (tmp_path / "s" / ".poet-train.tfrecord-00000-of-00004.abc.tmp").write_bytes(b"half")
    tokenize(spec)
    assert contents(tmp_path / "s") == contents(store)


def test_a_kill_while_cleaning_up_leaves_a_store(
    source: pathlib.Path, store: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    spec = store_spec(source, tmp_path / "s")

    def die(*_: Any, **__: Any) -> None:
        raise fakes.Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(fakes.Killed):
            tokenize(spec)
    tokenize(spec)
    assert contents(tmp_path / "s") == contents(store)


# ---------------------------------------------------------------------------------------- refusal


def test_another_configuration_is_refused_and_named(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    spec = store_spec(source, tmp_path / "s")
    with pytest.raises(fakes.Killed):
        tokenize(spec, killed_at=3)
    for _ in range(2):  # an unfinished store, then a finished one
        for change, message in (
            ({"tokenizer": fakes.MeanTokenizer(fingerprint="v2")}, "streams.video.fingerprint"),
            ({"text": fakes.LetterEncoder(width=5)}, "text.width is 4, not 5"),
            ({"clip": CLIP.replace(frames=1)}, "clip.frames is 5, not 1"),
        ):
            with pytest.raises(UserError, match=message):
                tokenize(spec, **change)
        with pytest.raises(UserError, match="seed is 0, not 3"):
            tokenize(spec.replace(seed=3))
        tokenize(spec)


def test_foreign_files_are_never_touched(source: pathlib.Path) -> None:
    before = contents(source)
    with pytest.raises(UserError, match="not empty and holds no token store"):
        tokenize(store_spec(source, source))
    assert contents(source) == before


def test_too_many_unusable_clips_fail_and_are_named(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    spec = store_spec(source, tmp_path / "s", max_skipped=2 / TRAIN)
    strict = spec.replace(max_skipped=2 / TRAIN - 1e-6, path=str(tmp_path / "t"))
    assert tokenize(spec).splits["train"].clips == TRAIN - 2
    with pytest.raises(UserError, match="2 of the 22 clips .*\n  clip_004.mp4: undecodable"):
        tokenize(strict)


def test_copies_of_training_clips_in_validation_are_counted_and_said(tmp_path: pathlib.Path) -> None:
    """Under other names and captions: what counts is what a model would see."""
    folder, said = tmp_path / "clips", []
    fakes.write_folder(folder, [10 * k for k in range(8)])
    fakes.write_folder(folder, [20, 35, 70], "validation", "v")
    found = tokenize(store_spec(folder, tmp_path / "s"), log=said.append)
    assert found.splits["train"].notes == {}
    assert found.splits["validation"].notes == {"an exact copy in another split": 2}
    assert found.splits["validation"].clips == 3
    assert any("2 with an exact copy in another split" in line for line in said)


def test_equal_keys_are_stored_once(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    fakes.write_tfds(tmp_path / "d", {"train": [fakes.flat_video(k) for k in range(10)]})
    from poet.store import tfds_source

    text = tfds_source.tfds_text
    same = lambda value: "train/3" if value == b"train/8" else text(value)  # noqa: E731
    monkeypatch.setattr(tfds_source, "tfds_text", same)
    manifest = tokenize(store_spec(tmp_path / "d", tmp_path / "s", splits=("train",)))
    (skipped,) = manifest.splits["train"].skipped
    assert (skipped.key, skipped.reason) == ("train/3", "duplicate key")
    stored = {e["key"].decode(): int(e["video"][0]) for e in examples(tmp_path / "s", "train")}
    assert len(stored) == 9 and stored["train/3"] == 3


def test_a_clip_that_the_tokenizer_cannot_take_is_refused_first(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="1 more than a multiple of 4; nearest are 5 and 9"):
        tokenize(store_spec(source, tmp_path / "s"), clip=CLIP.replace(frames=6))
    assert not (tmp_path / "s").exists()


def test_codes_out_of_range_are_refused(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    narrow = fakes.MeanTokenizer(spec=fakes.TOKENIZER.replace(bits=4))
    with pytest.raises(ValueError, match="outside \\[0, 2\\*\\*4\\)"):
        tokenize(store_spec(source, tmp_path / "s"), tokenizer=narrow)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])  # The last is beyond float16.
def test_states_that_are_not_finite_enter_no_store(source: pathlib.Path, tmp_path: pathlib.Path, value: float) -> None:
    class Broken(fakes.LetterEncoder):
        def __call__(self, texts):
            encoded = super().__call__(texts)
            encoded.states_BxLxD[-1, 0, 0] = value
            return encoded

    with pytest.raises(UserError, match="NaN, infinite or beyond float16"):
        tokenize(store_spec(source, tmp_path / "s"), text=Broken())
    assert not list((tmp_path / "s").rglob("*.examples"))


# -------------------------------------------------------------------------------------- integrity


@pytest.fixture
def copy(store: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return shutil.copytree(store, tmp_path / "copy")


def test_verify_accepts_an_intact_store(store: pathlib.Path) -> None:
    assert reader.verify(str(store)) == reader.load_manifest(str(store))


@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_cut_shard_is_named_on_opening(copy: pathlib.Path, size: int) -> None:
    shard = copy / "poet-train.tfrecord-00002-of-00004"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(UserError, match="00002-of-00004.*truncated"):
        reader.load_manifest(str(copy))
    with pytest.raises(UserError, match="00002-of-00004.*truncated"):
        reader.dataset(str(copy), "validation")


def test_a_changed_byte_is_named_by_verify(copy: pathlib.Path) -> None:
    shard = copy / "poet-validation.tfrecord-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    reader.load_manifest(str(copy))
    with pytest.raises(UserError, match="poet-validation.*corrupt"):
        reader.verify(str(copy))


def test_a_missing_shard_and_a_missing_store_are_named(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (copy / "poet-train.tfrecord-00001-of-00004").unlink()
    with pytest.raises(UserError, match="lacks the shard .*00001-of-00004"):
        reader.load_manifest(str(copy))
    with pytest.raises(UserError, match="there is no token store in .*absent"):
        reader.load_manifest(str(tmp_path / "absent"))


def test_a_damaged_or_foreign_manifest_is_refused(copy: pathlib.Path) -> None:
    file = copy / "manifest.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="manifest.json is damaged"):
        reader.load_manifest(str(copy))
    file.write_text(whole.replace('"version": 2', '"version": 99'))
    with pytest.raises(UserError, match="version 99"):
        reader.load_manifest(str(copy))


@pytest.mark.parametrize(
    "edit", [('"seed": 0', '"seed": 1'), ('"source": "', '"source": "x'), ('"clips": 6', '"clips": 5')]
)
def test_an_edited_manifest_is_refused(copy: pathlib.Path, edit: tuple[str, str]) -> None:
    file = copy / "manifest.json"
    whole = file.read_text()
    assert edit[0] in whole
    file.write_text(whole.replace(*edit, 1))
    with pytest.raises(UserError, match="manifest.json is damaged or was edited"):
        reader.load_manifest(str(copy))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_edited_metadata_is_refused(copy: pathlib.Path, name: str) -> None:
    whole = (copy / name).read_text()
    for change in (whole + " ", None):
        (copy / name).write_text(change) if change else (copy / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing, damaged or was edited"):
            reader.load_manifest(str(copy))


def test_a_store_from_before_its_manifest_had_a_hash_is_read_with_a_warning(
    copy: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = json.loads((copy / "manifest.json").read_text())
    known = reader.load_manifest(str(copy))
    del values["sha256"], values["metadata"]
    (copy / "manifest.json").write_text(json.dumps(values))
    assert reader.load_manifest(str(copy)).replace(metadata=known.metadata) == known
    assert "has no hash of itself" in caplog.text


def test_verify_names_every_damaged_shard_and_record(copy: pathlib.Path) -> None:
    """A bit of the third record of one shard, and the last bytes of another."""
    first, second, *_ = sorted(copy.glob("*train.tfrecord*"))
    ends = np.cumsum([len(framing.frame(r)) for r in tf_records(first)])
    last = len(tf_records(second)) - 1
    flip(first, int(ends[1]) + 20)
    flip(second, second.stat().st_size - 1)
    with pytest.raises(UserError) as refused:
        reader.verify(str(copy))
    message = str(refused.value)
    assert f"{first} is corrupt at record 2, byte {ends[1]};" in message
    assert f"{second} is corrupt at record {last}, byte" in message


def test_the_command_verifies(copy: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "verify", str(copy)]) == 0
    assert "is intact: 26 clips in 5 shards" in capsys.readouterr().out
    flip(copy / "poet-validation.tfrecord-00000-of-00001", 100)
    assert cli.main(["store", "verify", str(copy)]) == cli.EXIT_USER
    said = capsys.readouterr().err
    assert "corrupt at record 0, byte 0" in said and said.count("\n") == 1


def test_damaged_and_lost_files_are_made_again(
    source: pathlib.Path, copy: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole = contents(copy)

    def rebuild(path: str) -> manifests.Manifest:
        return tokenize(store_spec(source, pathlib.Path(path)))

    assert repairing.repair(str(copy), pytest.fail) == []
    flip(copy / "poet-validation.tfrecord-00000-of-00001", 100)
    lost = sorted(copy.glob("poet-train*"))[1]
    lost.unlink()
    (copy / "features.json").write_text("{}")
    mended = repairing.repair(str(copy), rebuild)
    assert set(mended) == {"poet-validation.tfrecord-00000-of-00001", lost.name, "features.json"}
    assert contents(copy) == whole and not list(copy.parent.glob(".*"))


def test_a_source_that_gives_other_bytes_repairs_nothing(source: pathlib.Path, copy: pathlib.Path) -> None:
    flip(copy / "poet-validation.tfrecord-00000-of-00001", 100)
    before = contents(copy)
    with pytest.raises(UserError, match="other bytes"):
        repairing.repair(str(copy), lambda path: tokenize(store_spec(source, pathlib.Path(path), seed=1)))
    assert contents(copy) == before and not list(copy.parent.glob(".*"))


def tf_records(file: pathlib.Path) -> list[bytes]:
    import tensorflow as tf

    return list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())


def flip(file: pathlib.Path, place: int, bit: int = 3) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("suffix", ["examples", "json"])
def test_a_flipped_bit_in_a_finished_intermediate_file_is_found_and_redone(
    source: pathlib.Path, store: pathlib.Path, tmp_path: pathlib.Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = store_spec(source, tmp_path / "s")
    with pytest.raises(fakes.Killed):
        tokenize(spec, killed_at=5)
    made = sorted((tmp_path / "s" / ".partial").glob(f"*/*.{suffix}"))
    for number, file in enumerate(made):
        flip(file, file.stat().st_size * (number + 1) // (len(made) + 2), number % 8)
    tokenize(spec)
    assert contents(tmp_path / "s") == contents(store)
    assert made and (suffix == "json" or "is damaged: it is encoded again" in caplog.text)


def test_damage_after_that_look_does_not_enter_the_store(
    source: pathlib.Path, store: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    spec, merge = store_spec(source, tmp_path / "s"), writer.merge_split

    def damaged_first(folder: pathlib.Path, *given: Any) -> Any:
        file = sorted((folder / ".partial").glob("train/*.examples"))[0]
        flip(file, file.stat().st_size // 2)
        return merge(folder, *given)

    monkeypatch.setattr(writer, "merge_split", damaged_first)
    with pytest.raises(UserError, match="intermediate file .* is damaged at clip .* makes this file anew"):
        tokenize(spec)
    monkeypatch.setattr(writer, "merge_split", merge)
    tokenize(spec)
    assert contents(tmp_path / "s") == contents(store)


def test_a_source_that_changed_at_equal_size_is_another_one(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    changed = shutil.copytree(source, tmp_path / "clips")
    spec = store_spec(changed, tmp_path / "s")
    with pytest.raises(fakes.Killed):
        tokenize(spec, killed_at=3)
    flip(changed / "clip_015.mp4", -1)
    with pytest.raises(UserError, match="another configuration: sources.train is"):
        tokenize(spec)


def test_manifest_json_round_trip(store: pathlib.Path) -> None:
    manifest = reader.load_manifest(str(store))
    assert manifests.to_json(manifest) == (store / "manifest.json").read_text()


def test_unknown_split_lists_what_exists(store: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        reader.dataset(str(store), "test")


# ------------------------------------------------------------------------------------ check_store


def test_check_store_accepts_what_made_it(store: pathlib.Path) -> None:
    manifest = reader.load_manifest(str(store))
    text = manifests.text_info(fakes.LetterEncoder())
    manifests.check_store(
        manifest, text=text, streams={"video": {"fingerprint": "mean-tokenizer-1", "grid": [2, 2, 2], "bits": 8}}
    )


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"streams": {"video": {"fingerprint": "other"}}}, "video.fingerprint is 'mean-tokenizer-1', not 'other'"),
        ({"streams": {"video": {"grid": [5, 2, 2]}}}, r"video.grid is \[2, 2, 2\], not \[5, 2, 2\]"),
        ({"streams": {"video": {"bits": 18}}}, "video.bits is 8, not 18"),
        ({"text": manifests.text_info(fakes.LetterEncoder(length=64))}, "text.length is 8, not 64"),
        (
            {"text": manifests.TextInfo(name="t5", fingerprint="", length=8, width=4)},
            "text.name is 'letters', not 't5'. Tokenize",
        ),
    ],
)
def test_check_store_names_what_differs(store: pathlib.Path, wanted: dict[str, Any], message: str) -> None:
    manifest = reader.load_manifest(str(store))
    with pytest.raises(UserError, match=message):
        manifests.check_store(manifest, **wanted)
