"""The command line from outside: exit codes, and errors that say what to do before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from poet import cli

QUICKSTART = "--gin_file=gin/experiments/quickstart.gin"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--workdir=w"], ["--gin_file"]),
        (["train", "--workdir=w", "--gin_file=gin/experiments/quickstrat.gin"],
         ["quickstrat", "gin/experiments/quickstart.gin"]),
        (["train", "--workdir=w", QUICKSTART, "--gin.TRAIN.step=3"], ["step", "steps"]),
        (["train", "--workdir=w", QUICKSTART, "--gin.TRAIN.steps=many"], ["TRAIN.steps", "int"]),
        (["train", "--workdir=w", QUICKSTART], ["DATA.store is empty", "poet tokenize"]),
        (["train", "--workdir=w", QUICKSTART, "--gin.DATA.store=nowhere"], ["nowhere"]),
        (["tokenize", QUICKSTART, "--gin.STORE.path=x"], ["STORE.source is empty"]),
        (["tokenize", QUICKSTART, "--gin.STORE.path=x", "--gin.STORE.source=nowhere"],
         ["nowhere"]),
        (["tokenize", QUICKSTART, "--gin.STORE.path=x", "--gin.STORE.source=.", "--gin.INGEST.nsfw='antigravity:fly'"],
         ["antigravity:fly", "--allow_code"]),
        (["tokenizer-train", "--workdir=w", QUICKSTART], ["VIDEO_TOKENIZER.path", "frozen"]),
        (["eval", "--checkpoint=nowhere", "--out=x"], ["nowhere", "no such folder"]),
        (["generate", "--checkpoint=nowhere", "--out=x", "--prompt=a"], ["nowhere"]),
        (["export", "--checkpoint=nowhere", "--out=x"], ["nowhere"]),
        (["report", "--workdir=nowhere"], ["nowhere"]),
        (["describe", QUICKSTART, "--devices=6", "--gin.MESH.tensor=4"], ["6 present", "MESH"]),
        (["describe", QUICKSTART, "--devices=8", "--gin.MESH.tensor=8"], ["heads", "divisible"]),
        (["describe", QUICKSTART, "--gin.DATA.rates={'text_to_vidoe': 1.0}"],
         ["text_to_vidoe", "text_to_video"]),
    ],
)
def test_mistakes_end_with_code_2_and_a_clear_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == cli.EXIT_USER
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"poet {arguments[0]}: error:")
    assert all(word in last for word in words), last
    assert not any(tmp_path.iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["trian"], "poet: error: unknown command 'trian' (did you mean train"),
        (["train", "--workdri=w"], "poet train: error: unknown flag --workdri (did you mean --workdir"),
        (["generate", "--temprature", "1"], "poet generate: error: unknown flag --temprature (did you mean --temp"),
        (["reconstruct", "--fps=1e999"], "poet reconstruct: error: argument --fps: 1e999: must lie in (0, 1000]"),
        (["reconstruct", "--fps=nan"], "poet reconstruct: error: argument --fps: nan: must lie in"),
        (["reconstruct", "--height=1000000000"], "poet reconstruct: error: argument --height: 1000000000: must"),
        (["reconstruct", "--tile=-1"], "poet reconstruct: error: argument --tile: -1: must lie in 0.."),
        (["describe", "--devices=-3"], "poet describe: error: argument --devices: -3: must lie in 0.."),
        (["generate", "--num=0"], "poet generate: error: argument --num: 0: must lie in 1.."),
        (["generate", "--known_frames=two"], "poet generate: error: argument --known_frames: invalid int value: 'two'"),
        (["train", "--process=-1"], "poet train: error: argument --process: -1: must lie in 0.."),
        (["train"], "poet train: error: the following arguments are required: --workdir"),
    ],
)
def test_a_misspelt_command_or_flag_is_one_line_with_near_names(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == cli.EXIT_USER
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1, said


def test_describe_plans_for_devices_that_are_not_here(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["describe", QUICKSTART, "--devices=4096", "--gin.DATA.batch=4096",
                     "--gin.MESH.data=32"]) == 0
    page = capsys.readouterr().out
    assert "data 32 x fsdp 128 x sequence 1 x tensor 1" in page and "text-to-video" in page
    assert "blocks.mlp.gate" in page and "Bytes per device" in page


def test_a_crash_is_code_1_with_its_cause_last(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("poet.describe.run", crash)
    assert cli.main(["describe", QUICKSTART]) == cli.EXIT_FAILED
    assert "the disk caught fire" in capsys.readouterr().err.strip().splitlines()[-1]
