"""The commands of films on the shipped weights, and what they refuse before the weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from poet import cli
from poet.spec import UserError, config

LM = "--checkpoint=data/pretrained/lm_arenas"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["long", LM, "--out=f", "--prompt=3: rain"], "the first prompt begins at 3 s"),
        (["long", LM, "--out=f", "--prompt=a", "--prompt=9: b", "--seconds=5"], "begins at 9 s of a film of 5 s"),
        (["long", LM, "--out=f", "--camera=pan lft"], "did you mean pan left"),
        (["long", LM, "--out=f", "--style=arena"], "unknown style 'arena'"),
        (["long", LM, "--out=f", "--sound"], "needs a prompt, a picture or a clip"),
        (["long", LM, "--out=f", "--sink", "--recode"], "one of recode and sink"),
        (["long", LM, "--out=f", "--context=5"], "a clip has 5, of which 1..4 may be conditioning frames"),
        (["long", LM, "--out=f", "--negative_prompt=blur"], "takes no text: drop the negative prompt"),
        (["long", LM, "--out=f", "--clip=none.mp4"], "none.mp4: no such file"),
        (["storyboard", LM, "--out=f", "--scenes=none.yaml"], "storyboard none.yaml: no such file"),
        (["chain", LM, "--out=f", "--jobs=none.yaml"], "chain none.yaml: no such file"),
        (["edit", LM, "--session=f", "--clip=none.mp4"], "none.mp4: no such file"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == cli.EXIT_USER
    assert said in capsys.readouterr().err
    assert not list(Path("f").glob("**/*.npz"))


def test_styles_are_files_of_settings():
    assert config.style("arenas")[0].startswith("PROMPT.camera=")
    assert {binding.partition("=")[0] for binding in config.style("videopoet")} == {"PROMPT.suffix", "PROMPT.negative"}
    with pytest.raises(UserError, match="unknown style 'arenass'.*arenas"):
        config.style("arenass")


@pytest.mark.slow
def test_the_commands_make_films_with_the_shipped_weights(tmp_path, capsys):
    words = ["--style=arenas", "--camera=pan left", "--prompt=on the green field"]
    assert cli.main(["long", LM, f"--out={tmp_path}/long", "--seconds=3", "--sound", *words]) == 0
    assert (
        cli.main(
            [
                "edit",
                LM,
                f"--session={tmp_path}/s",
                f"--clip={tmp_path}/long/film.mp4",
                "--count=2",
                "--batch",
                "--do=say on the green field",
                "--do=2",
                "--do=film",
            ]
        )
        == 0
    )
    assert cli.main(["storyboard", LM, "--scenes=data/stories/arenas.txt", f"--out={tmp_path}/story"]) == 0
    said = capsys.readouterr().out
    assert "clip 2: a film of 32 frames, 4.00 s" in said
    for folder in ("long", "s", "story"):
        assert (tmp_path / folder / "film.mp4").stat().st_size > 0
