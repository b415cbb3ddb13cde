"""The output folders of commands: one rule for all.

An output goes into a folder that is new or empty.  With `--overwrite` it may replace an earlier output of
the same kind: of that, the files that its MANIFEST lists, and nothing else.  All of it is known before
the work begins.  Files are written beside the folder under a temporary name and moved into it when they
are whole, so that a failure costs neither the earlier output nor anything else.  A process that is killed
while it moves them leaves the manifest beside them, by which the next one knows the half as poet's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from poet.runs import manifest
from poet.runs.buckets import files
from poet.spec import UserError

# Kinds of folders with a MANIFEST; `kind_of` infers it where the manifest lacks it.
GENERATION, EVALUATION, TOKENIZER_EVALUATION = "generation", "evaluation", "tokenizer evaluation"
RECONSTRUCTION, EXPORT, WEIGHTS, CHECKPOINT = "reconstruction", "export", "weights", "checkpoint"
SCORE = "score"
LEAKS, BASELINES = "search for leaks", "set of baselines"
SUITE, CONDITIONS = "benchmark", "set of conditions"
_ENDING = ".poet-partial"
# Where the manifest of an earlier output lies, in the temporary folder, while its files are replaced.
_EARLIER = ".earlier"


def kind_of(fields: dict[str, Any]) -> str:
    """The kind of output that a manifest describes."""
    if "kind" in fields:
        return fields["kind"]
    if "arrays" in fields:
        return CHECKPOINT
    return EXPORT if "jax" in fields else WEIGHTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """An output folder that was found fit to be written; see `claim`.

    Used as a context: the block writes below `folder`, which is temporary.  When it ends well, its files
    are moved to `final`; when it fails, they are removed.

    Attributes:
      final: the folder that the user named.
      kind: what is written.
      replaced: names of the files of an earlier output, which go when the new ones are whole.
    """

    final: Path
    kind: str
    replaced: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder to write to, until it is complete."""
        return partial_of(self.final)

    def where(self, path: str | os.PathLike[str]) -> Path:
        """The final path of a file that was written below `folder`."""
        return self.final / Path(path).relative_to(self.folder)

    def __enter__(self) -> Output:
        if not (self.final / manifest.NAME).exists():
            self._remove_earlier()  # A half, while its manifests are there.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _finish(self) -> None:
        if not (self.folder / manifest.NAME).exists():  # An export and weights have written theirs.
            manifest.write(self.folder, {"kind": self.kind})
        names = sorted(p.relative_to(self.folder).as_posix() for p in _files(self.folder))
        taken = [n for n in names if (self.final / n).exists() and n not in self.replaced]
        if taken:
            raise UserError(
                f"{self.final} got a file {taken[0]!r} of another program meanwhile: nothing "
                "was written; give another folder"
            )
        self._remove_earlier()
        for name in [n for n in names if n != manifest.NAME] + [manifest.NAME]:
            (self.final / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.folder / name, self.final / name)

    def _remove_earlier(self) -> None:
        # The manifest goes first: what is half removed is no output any more.
        if (self.final / manifest.NAME).exists():
            (self.folder / _EARLIER).mkdir()
            os.rename(self.final / manifest.NAME, self.folder / _EARLIER / manifest.NAME)
        for name in self.replaced:
            (self.final / name).unlink(missing_ok=True)
        for folder in sorted({Path(name).parent for name in self.replaced}, reverse=True):
            if folder != Path(".") and (self.final / folder).is_dir() and not any((self.final / folder).iterdir()):
                (self.final / folder).rmdir()


def partial_of(final: Path) -> Path:
    """Where the files of an output lie until it is whole, or for ever after a kill."""
    return final.with_name(f".{final.name}{_ENDING}")


def claim(
    path: str | os.PathLike[str],
    kind: str,
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
    resumed: str = "",
) -> Output:
    """Checks that an output of this kind may go to the folder `path`; touches nothing.

    Args:
      overwrite: replace an earlier output of this kind.
      inputs: files and folders that the command reads; '' is none.
      resumed: a folder below it that may be there already: what an interrupted run left for the next one.

    Raises:
      UserError: it is a file, an input, holds something else, lies in a folder that a manifest
        describes, or nothing can be written there.
    """
    if files.is_url(path):
        raise UserError(f"{path} is a URL: give a folder here; `gcloud storage rsync` copies it to a bucket")
    final = Path(path).expanduser().absolute()
    if final.exists() and not final.is_dir():
        raise UserError(f"--out={path} is a file: give a new or empty folder")
    _refuse_inputs(final, path, [Path(i).expanduser().resolve() for i in inputs if i])
    _refuse_inside(final, path)
    replaced = _earlier(final, path, kind, overwrite, resumed)
    _check_writable(final, path)
    return Output(final=final, kind=kind, replaced=replaced)


def claim_of(args: Any, kind: str, inputs: Sequence[str | os.PathLike[str]] = ()) -> Output:
    """`claim` for a command's --out and --overwrite."""
    return claim(args.out, kind, overwrite=args.overwrite, inputs=inputs)


def claim_file(path: str | os.PathLike[str], *, overwrite: bool = False, flag: str = "--out") -> Path:
    """Checks that one new file may be written; the path of it.

    Raises:
      UserError: it exists and `overwrite` is not set, or is a folder, or nothing can be written there.
    """
    if files.is_url(path):
        raise UserError(f"{flag}={path} is a URL: give a file of this machine")
    final = Path(path).expanduser().absolute()
    if final.is_dir():
        raise UserError(f"{flag}={path} is a folder: give a file to write")
    if final.exists() and not overwrite:
        raise UserError(f"{flag}={path} exists: give another name, or --overwrite to replace it")
    _check_writable(final.parent, path)
    return final


def _refuse_inputs(final: Path, path: Any, inputs: Sequence[Path]) -> None:
    resolved = final.resolve()
    for given in inputs:
        if given == resolved or resolved in given.parents:
            raise UserError(f"--out={path} is, or holds, the input {given}: give another folder")


def _refuse_inside(final: Path, path: Any) -> None:
    """A file more in a folder whose every file is listed would count as damage."""
    for above in final.resolve().parents:
        if (above / manifest.NAME).is_file():
            raise UserError(
                f"--out={path} lies in {above}, whose MANIFEST lists all of its files: give a folder outside it"
            )


def _earlier(final: Path, path: Any, kind: str, overwrite: bool, resumed: str) -> tuple[str, ...]:
    """Names of the files to be replaced; () for a new folder, or one without files."""
    if all(path.relative_to(final).parts[0] == resumed for path in _files(final)):
        return ()
    try:
        listed = manifest.read(final)
    except manifest.Corrupt:
        if half := _half(final, kind):
            return half
        raise UserError(
            f"--out={path} is not empty and poet has no record of writing it: give a new or empty folder"
        ) from None
    found = kind_of(listed)
    if found != kind:
        raise UserError(
            f"--out={path} holds {_named(found)}, which {_named(kind)} does not replace: give another folder"
        )
    if not overwrite:
        raise UserError(f"--out={path} holds an earlier {kind}: give another folder, or --overwrite to replace it")
    return (*listed["files"], manifest.NAME)


def _half(final: Path, kind: str) -> tuple[str, ...]:
    """Names of the files that a killed process left: of the output that it was moving, and of the one before."""
    names: list[str] = []
    for folder in (partial_of(final), partial_of(final) / _EARLIER):
        with contextlib.suppress(manifest.Corrupt):
            listed = manifest.read(folder)
            names += [name for name in listed["files"] if kind_of(listed) == kind and _same(final, name, listed)]
    return tuple(names)


def _same(folder: Path, name: str, listed: dict[str, Any]) -> bool:
    with contextlib.suppress(manifest.Corrupt):
        manifest.check_file(folder, name, listed)
        return True
    return False


def _named(kind: str) -> str:
    """'an export', 'a checkpoint', 'released weights'."""
    if kind == WEIGHTS:
        return "released weights"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _check_writable(final: Path, path: Any) -> None:
    nearest = next(above for above in (final, *final.parents) if above.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "is a file" if not nearest.is_dir() else "cannot be written to"
        raise UserError(f"--out={path}: {nearest} {what}; give a folder that you can write to")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())
