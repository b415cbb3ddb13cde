"""Where commands write: what is new or theirs is written, everything else is left as it was."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from poet import cli
from poet.runs import manifest, outputs
from poet.spec import UserError

LM, MAGVIT = "data/pretrained/lm_arenas", "data/pretrained/magvit_v2_64x8"


def contents(folder: Path) -> dict[str, str]:
    """Path below `folder` -> hash, or 'folder'."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def write(folder: Path, kind: str, files: dict[str, str], **options: object) -> None:
    with outputs.claim(folder, kind, **options) as output:
        for name, text in files.items():
            (output.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (output.folder / name).write_text(text)


names = st.text("abc", min_size=1, max_size=2)
trees = st.dictionaries(
    st.one_of(names.map(lambda n: f"{n}.txt"), st.tuples(names, names).map(lambda p: f"{p[0]}/{p[1]}.txt")),
    st.text("xyz", max_size=3),
    min_size=1,
    max_size=4,
)


@hypothesis.given(first=trees, second=trees, theirs=trees)
@hypothesis.settings(max_examples=40, deadline=None)
def test_overwriting_replaces_what_poet_wrote_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, first: dict, second: dict, theirs: dict
) -> None:
    out = tmp_path_factory.mktemp("o") / "out"
    write(out, outputs.EVALUATION, first)
    theirs = {f"theirs/{name}": text for name, text in theirs.items()}
    for name, text in theirs.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    with pytest.raises(UserError, match="--overwrite"):
        outputs.claim(out, outputs.EVALUATION)
    write(out, outputs.EVALUATION, second, overwrite=True)
    files = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert files.pop("MANIFEST") and files == second | theirs
    assert not list(out.parent.glob(".*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_the_earlier_output_whole(tmp_path: Path, overwrite: bool) -> None:
    write(tmp_path / "out", outputs.GENERATION, {"000.txt": "old"})
    before = contents(tmp_path)
    with pytest.raises((RuntimeError, UserError)):
        with outputs.claim(tmp_path / "out", outputs.GENERATION, overwrite=overwrite) as output:
            (output.folder / "000.txt").write_text("new")
            raise RuntimeError("no memory")
    assert contents(tmp_path) == before


def test_a_file_that_somebody_puts_there_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another program"):
        with outputs.claim(tmp_path / "out", outputs.GENERATION) as output:
            (output.folder / "000.txt").write_text("new")
            output.final.mkdir()
            (output.final / "000.txt").write_text("mine")
    assert contents(tmp_path).keys() == {"out", "out/000.txt"}
    assert (tmp_path / "out/000.txt").read_text() == "mine"


class Killed(BaseException):
    """Ends the work as SIGKILL does: before a change of the file system, and none follows."""


class Kill:
    """`left`: changes of the file system until it comes, itself among them; None: it does not come."""

    left: int | None = None


def _end(event: str, arguments: tuple) -> None:
    if Kill.left is None:
        return
    changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    Kill.left -= changes
    if Kill.left <= 0 and (changes or writes):
        raise Killed


# Hooks cannot be taken away: there is one, and it does nothing while no kill is to come.
sys.addaudithook(_end)


def killed(number: int, work: Callable[[], None]) -> bool:
    """Whether `work` was ended before it changed the file system the `number`th time."""
    Kill.left = number
    try:
        work()
    except Killed:
        return True
    finally:
        Kill.left = None
    return False


@pytest.mark.parametrize("earlier", [{}, {"a.txt": "1", "old/c.txt": "2", "old/d.txt": "3"}], ids=["new", "replaced"])
def test_a_kill_at_any_change_leaves_what_the_next_one_finishes(tmp_path: Path, earlier: dict[str, str]) -> None:
    files = {"a.txt": "x", "b/c.txt": "y", "b/d/e.txt": "z"}
    for number in itertools.count(1):
        out = tmp_path / f"{number}" / "out"
        if earlier:
            write(out, outputs.EXPORT, earlier)
        (out / "parts").mkdir(parents=True, exist_ok=True)
        (out / "parts/mine.txt").write_text("mine")
        again = lambda: write(out, outputs.EXPORT, files, overwrite=bool(earlier), resumed="parts")
        if not killed(number, again):
            break
        for restart in (lambda: killed(number * 7 % 11 + 1, again), again):  # The next one is killed too.
            if earlier or not (out / "MANIFEST").exists():
                restart()
        manifest.check_listed(out)
        found = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file() and p.name != "MANIFEST"}
        assert found == files | {"parts/mine.txt": "mine"}
    assert number > 12


def test_half_an_output_of_another_kind_or_altered_is_not_replaced(tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.poet-partial"
    for folder, text in ((out, "mine"), (partial, "poet's")):
        folder.mkdir()
        (folder / "a.txt").write_text(text)
    manifest.write(partial, {"kind": outputs.EXPORT})
    with pytest.raises(UserError, match="no record"):
        outputs.claim(out, outputs.EXPORT)
    (out / "a.txt").write_text("poet's")
    outputs.claim(out, outputs.EXPORT)
    with pytest.raises(UserError, match="no record"):
        outputs.claim(out, outputs.WEIGHTS)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "case, words",
    [
        ("file", "is a file"),
        ("users", "no record"),
        ("kind", "released weights"),
        ("altered", "no record"),
        ("input", "is, or holds, the input"),
        ("holds_input", "is, or holds, the input"),
        ("inside", "MANIFEST lists all"),
        ("below_file", "is a file"),
    ],
)
def test_what_is_not_poets_to_replace_is_refused_untouched(
    tmp_path: Path, case: str, words: str, overwrite: bool
) -> None:
    out, inputs = tmp_path / "out", [tmp_path / "out" / "clips" / "a.mp4"]
    if case == "file":
        out.write_text("mine")
    elif case == "below_file":
        (tmp_path / "f").write_text("mine")
        out = tmp_path / "f" / "out"
    else:
        out.mkdir()
        (out / "model.safetensors").write_text("mine")
    if case in ("kind", "inside", "altered"):
        manifest.write(out, {"step": 7})
    if case == "altered":
        (out / "MANIFEST").write_bytes((out / "MANIFEST").read_bytes().replace(b"7", b"8"))
    if case == "inside":
        out = out / "deeper"
    if case == "input":
        inputs = [out]
    before = contents(tmp_path)
    with pytest.raises(UserError, match=words):
        outputs.claim(out, outputs.EXPORT, overwrite=overwrite, inputs=inputs if "input" in case else ["", "elsewhere"])
    assert contents(tmp_path) == before


def test_a_single_file_is_new_or_asked_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        outputs.claim_file(tmp_path / "a.svg", flag="--picture")
    assert outputs.claim_file(tmp_path / "a.svg", overwrite=True) == tmp_path / "a.svg"
    with pytest.raises(UserError, match="is a folder"):
        outputs.claim_file(tmp_path, overwrite=True)


COMMANDS = {
    "eval": ["eval", f"--checkpoint={LM}"],
    "generate": ["generate", f"--checkpoint={LM}", "--prompt=a"],
    "export": ["export", f"--checkpoint={LM}"],
    "weights": ["export", f"--checkpoint={LM}", "--weights_only"],
    "reconstruct": ["reconstruct", "CLIP", f"--tokenizer={MAGVIT}"],
    "tokenizer-eval": ["tokenizer-eval", "--gin_file=gin/experiments/tokenizer_arenas.gin", f"--tokenizer={MAGVIT}"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_no_command_touches_a_folder_of_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, flags: list[str]
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    for file in ("eval.json", "000.mp4", "clip.mp4", "model.safetensors", "thesis.txt"):
        (out / file).write_text("mine")
    before = contents(tmp_path)
    arguments = [a.replace("CLIP", str(out / "clip.mp4")) for a in COMMANDS[name]]
    assert cli.main([*arguments, f"--out={out}", *flags]) == 2
    said = capsys.readouterr().err
    assert "new or empty folder" in said or "another folder" in said
    assert "Traceback" not in said and contents(tmp_path) == before


@pytest.mark.parametrize("name", ["generate", "export", "weights"])
def test_the_checkpoint_that_is_read_is_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    released = Path(LM).absolute()
    before = contents(released)
    for out in (released, released / "deeper"):
        assert cli.main([*COMMANDS[name], f"--out={out}", "--overwrite"]) == 2
    assert contents(released) == before and capsys.readouterr().err.count("--out=") == 2


def test_a_url_is_no_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/out is a URL: give a folder here"):
        outputs.claim("gs://bucket/out", outputs.EXPORT)
    assert not list(tmp_path.iterdir())
