"""The command line from outside: exit codes, and errors that say what to do before any work."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poet import cli
from poet.cli import command, commands, logs
from poet.runs import assets, exits

QUICKSTART = "--gin_file=gin/experiments/quickstart.gin"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--workdir=w"], ["--gin_file"]),
        (
            ["train", "--workdir=w", "--gin_file=gin/experiments/quickstrat.gin"],
            ["quickstrat", "gin/experiments/quickstart.gin"],
        ),
        (["train", "--workdir=w", QUICKSTART, "--gin.TRAIN.step=3"], ["step", "steps"]),
        (["train", "--workdir=w", QUICKSTART, "--gin.TRAIN.steps=many"], ["TRAIN.steps", "int"]),
        (["train", "--workdir=w", QUICKSTART], ["DATA.store is empty", "poet tokenize"]),
        (["train", "--workdir=w", QUICKSTART, "--gin.DATA.store=nowhere"], ["nowhere"]),
        (["tokenize", QUICKSTART, "--gin.STORE.path=x"], ["STORE.source is empty"]),
        (
            ["tokenizer-train", "--gin_file=gin/experiments/tokenizer_arenas_decoder.gin", "--workdir=x"],
            ["TOKENIZER_TRAIN.frozen_encoder", "give its folder as TOKENIZER_TRAIN.init_from"],
        ),
        (["tokenize", QUICKSTART, "--gin.STORE.path=x", "--gin.STORE.source=nowhere"], ["nowhere"]),
        (
            [
                "tokenize",
                QUICKSTART,
                "--gin.STORE.path=x",
                "--gin.STORE.source=.",
                "--gin.INGEST.nsfw='antigravity:fly'",
            ],
            ["antigravity:fly", "--allow_code"],
        ),
        (["tokenizer-train", "--workdir=w", QUICKSTART], ["VIDEO_TOKENIZER.path", "frozen"]),
        (["eval", "--checkpoint=nowhere", "--out=x"], ["nowhere", "no such folder"]),
        (["generate", "--checkpoint=nowhere", "--out=x", "--prompt=a"], ["nowhere"]),
        (["export", "--checkpoint=nowhere", "--out=x"], ["nowhere"]),
        (["report", "--workdir=nowhere"], ["nowhere"]),
        (["describe", QUICKSTART, "--devices=6", "--gin.MESH.tensor=4"], ["6 present", "MESH"]),
        (["describe", QUICKSTART, "--devices=8", "--gin.MESH.tensor=8"], ["heads", "divisible"]),
        (
            ["describe", QUICKSTART, "--gin.DATA.mixture_rates={'text_to_vidoe': 1.0}"],
            ["text_to_vidoe", "text_to_video"],
        ),
    ],
)
def test_mistakes_end_with_code_2_and_a_clear_line(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
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
        (["reconstruct", "--fps=0"], "poet reconstruct: error: argument --fps: 0: must lie in (0, 1000]"),
        (["reconstruct", "--fps=nan"], "poet reconstruct: error: argument --fps: nan: must lie in"),
        (["reconstruct", "--height=1000000000"], "poet reconstruct: error: argument --height: 1000000000: must"),
        (["reconstruct", "--tile=-1"], "poet reconstruct: error: argument --tile: -1: must lie in 0.."),
        (["describe", "--devices=-3"], "poet describe: error: argument --devices: -3: must lie in 0.."),
        (["generate", "--num=0"], "poet generate: error: argument --num: 0: must lie in 1.."),
        (
            ["generate", "--conditioning_frames=two"],
            "poet generate: error: argument --conditioning_frames/--known_frames: invalid int value: 'two'",
        ),
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
    assert cli.main(["describe", QUICKSTART, "--devices=4096", "--gin.DATA.batch=4096", "--gin.MESH.data=32"]) == 0
    page = capsys.readouterr().out
    assert "data 32 x fsdp 128 x sequence 1 x tensor 1" in page and "text-to-video" in page
    assert "blocks.mlp.gate" in page and "Bytes per device" in page


def test_a_crash_is_code_1_with_its_cause_last(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("the disk caught fire")

    monkeypatch.setattr("poet.planning.describe.run", crash)
    assert cli.main(["describe", QUICKSTART]) == cli.EXIT_FAILED
    assert "the disk caught fire" in capsys.readouterr().err.strip().splitlines()[-1]


def test_poet_alone_lists_its_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == cli.EXIT_USER
    said = capsys.readouterr().err
    assert all(f"    {name}" in said for name in commands.COMMANDS)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_help_names_only_flags_that_the_command_takes_and_its_example_parses(
    name: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    page = capsys.readouterr().out
    declared = commands.COMMANDS[name]
    own = page.replace(declared.example, "")
    assert ("--gin_file" in own) == (declared.settings == command.FILES)
    assert ("--gin." in own) == (declared.settings != command.NONE)
    assert declared.summary in page and declared.example in page
    words = [w for w in shlex.split(declared.example) if not w.startswith(cli.GIN_PREFIX)]
    for each in filter(None, cli._wrapped([name, *words])):
        assert cli._parse(each).command == each[0]


@pytest.mark.parametrize("name", [n for n, c in commands.COMMANDS.items() if c.settings == command.NONE])
def test_a_command_without_settings_refuses_them(name: str, capsys: pytest.CaptureFixture) -> None:
    words = shlex.split(commands.COMMANDS[name].example)
    assert cli.main([name, "--gin.NONSENSE.q=1", *words]) == cli.EXIT_USER
    assert "takes no settings, got --gin.NONSENSE.q=1" in capsys.readouterr().err


def make_hostile(folder: Path) -> None:
    """Files that are not what they are given as."""
    (folder / "loop_a.gin").write_text("include 'loop_b.gin'\n")
    (folder / "loop_b.gin").write_text("include 'loop_a.gin'\n")
    (folder / "self.gin").write_text("include 'self.gin'\n")
    (folder / "utf16.gin").write_bytes("TRAIN.steps = 3\n".encode("utf-16"))
    (folder / "brackets.gin").write_text("TRAIN.steps = " + "[" * 5000 + "]" * 5000 + "\n")
    (folder / "open.gin").write_text("DATA.mixture_rates = {'a': (1,\n")
    (folder / "null.gin").write_bytes(b"TRAIN.steps = 3\0\n")
    (folder / "large.gin").write_bytes(b"# " + b"x" * (2 << 20))
    (folder / "folder.gin").mkdir()
    os.mkfifo(folder / "pipe.gin")
    (folder / "text.txt").write_text("not a clip")
    for name, text in {"broken": "{", "list": "[]", "number": '{"clip": 3}', "deep": "[" * 100_000}.items():
        (folder / name).mkdir()
        for file in ("spec.json", "model.safetensors"):
            (folder / name / file).write_text(text)
    shutil.copytree(assets.root() / "data/pretrained/lm_arenas", folder / "flipped")
    data = bytearray((folder / "flipped/spec.json").read_bytes())
    data[40] ^= 1
    (folder / "flipped/spec.json").write_bytes(data)


HOSTILE = [
    *(
        [
            ["describe", f"--gin_file={name}.gin"]
            for name in ("loop_a", "self", "utf16", "brackets", "open", "null", "large", "folder", "pipe")
        ]
    ),
    ["describe", QUICKSTART, "--gin.TRAIN.steps=" + "(" * 5000],
    ["describe", QUICKSTART, "--gin.TRAIN"],
    ["describe", QUICKSTART, "--gin.TRAIN.steps=1e999"],
    ["describe", QUICKSTART, "--gin.OPTIMIZER.b1=2.0"],
    ["describe", QUICKSTART, "--picture=folder.gin"],
    ["describe", QUICKSTART, "--picture=text.txt/x.svg"],
    *(
        [
            [command, f"--checkpoint={name}", "--out=new", *more]
            for command, more in (("eval", []), ("generate", ["--prompt=a"]), ("export", []))
            for name in ("broken", "list", "number", "deep", "flipped", "text.txt", "folder.gin")
        ]
    ),
    *(
        [
            ["reconstruct", "text.txt", f"--tokenizer={name}", "--out=new"]
            for name in (
                "broken",
                "list",
                "number",
                "deep",
                "text.txt",
                "magvit_v2_64x8",
                "soundstream_16k",
                "lm_arenas",
            )
        ]
    ),
    [
        "tokenizer-eval",
        "--gin_file=gin/experiments/tokenizer_arenas.gin",
        "--tokenizer=magvit_v2_64x8",
        "--perceptual=nope",
        "--out=new",
    ],
    [
        "tokenizer-eval",
        "--gin_file=gin/experiments/tokenizer_arenas.gin",
        "--tokenizer=soundstream_16k",
        "--perceptual=",
        "--out=new",
    ],
    ["generate", "--checkpoint=data/pretrained/lm_arenas", "--out=new", "--prompt_file=folder.gin"],
    ["generate", "--checkpoint=data/pretrained/lm_arenas", "--out=new", "--prompt=a", "--gin.NONSENSE.q=1"],
    ["eval", "--checkpoint=data/pretrained/lm_arenas", "--out=new", "--metric=likelyhood"],
    ["tokenize", QUICKSTART, "--gin.STORE.path=new", "--gin.STORE.source=text.txt"],
    ["tokenize", QUICKSTART, "--gin.STORE.path=text.txt", "--gin.STORE.source=folder.gin"],
    ["train", QUICKSTART, "--gin.DATA.store=text.txt", "--workdir=new"],
    ["train", QUICKSTART, "--gin.DATA.store=broken", "--workdir=new"],
    ["report", "--workdir=text.txt"],
    ["report", "--workdir=broken"],
]


@pytest.mark.parametrize("arguments", HOSTILE, ids=lambda a: " ".join(w[:40] for w in a))
def test_what_is_not_what_it_should_be_is_one_line_and_no_work(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make_hostile(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert cli.main(arguments) == cli.EXIT_USER
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said and said.splitlines()[-1].startswith(f"poet {arguments[0]}: error:"), said
    assert len(said) < 2000 and sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "clips/000.mp4")

    monkeypatch.setattr("poet.planning.describe.run", full)
    assert cli.main(["describe", QUICKSTART]) == exits.PERMANENT
    assert capsys.readouterr().err == "poet describe: error: clips/000.mp4: No space left on device\n"


def test_the_terminal_shows_our_words_and_the_file_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = logs.file_of("train")
    logs.set_up(file)
    logging.getLogger("poet.training").info("step 1")
    logging.getLogger("jax").warning("chatter")
    logging.getLogger("py.warnings").warning("deprecated")
    logging.getLogger("jax").error("broken")
    shown = capsys.readouterr().err
    assert "step 1" in shown and "broken" in shown and "chatter" not in shown and "deprecated" not in shown
    kept = file.read_text()
    assert all(word in kept for word in ("step 1", "chatter", "deprecated", "broken"))
    for number in range(30):
        (tmp_path / "poet/logs" / f"2000-{number:02d}.log").touch()
    logs.set_up(logs.file_of("train"))
    assert len(list((tmp_path / "poet/logs").glob("*.log"))) < logs.KEPT_FILES + 1


def test_native_code_speaks_to_the_file_and_python_to_the_terminal(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from poet.cli import logs\n"
        "logs.native_to(Path(sys.argv[1])); os.write(2, b'chatter\\n'); print('ours', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    assert done.stderr == "ours\n" and (tmp_path / "log").read_text() == "chatter\n"


def test_a_reader_that_leaves_early_ends_the_command_quietly():
    command_line = [sys.executable, "-m", "poet.cli", "describe", "--gin_file=gin/experiments/arenas_small.gin"]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert running.stderr.read() == "" and running.wait() == cli.EXIT_FAILED
