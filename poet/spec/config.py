"""Gin files and command-line bindings -> a typed `Experiment`.  The only importer of gin.

Gin is a small language that can import modules and call functions; here it may only bind fields of
the specs, `NAME.field = value`, and include other files.  Imports, scopes, references and unknown
names are refused with their place, so that reading a config never runs code.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import io
import logging
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config_parser
from poet import spec as specs
from poet.planning import sizes
from poet.runs import assets
from poet.spec import Experiment, UserError, foreign, limited, near_names

_LOG = logging.getLogger(__name__)

SPECS: Mapping[str, type] = {name: getattr(specs, class_name) for class_name, name in specs.GIN_NAMES.items()}


@dataclasses.dataclass(frozen=True)
class _NoReferences(config_parser.ParserDelegate):
    """Refuses `@function` and `%macro` values."""

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> None:
        raise UserError(f"gin reference '@{scoped_name}' is not allowed: write a plain value")

    def macro(self, name: str) -> None:
        raise UserError(f"gin macro '%{name}' is not allowed: write the value itself")


def load(files: Sequence[str], bindings: Sequence[str] = ()) -> Experiment:
    """The experiment of these gin files, later ones and then `bindings` winning.

    Args:
      files: paths, from the current folder or among the shipped files (`gin/models/tiny.gin`).
      bindings: "NAME.field=value"; a value that is no Python literal is taken as a string.

    Raises:
      UserError: a missing file, unknown name, wrong type or illegal value, with its place.
    """
    register()
    gin.clear_config()
    for path in map(_find_gin, files):
        _parse(str(path), _read(path), (path.resolve(),))
    for binding in bindings:
        _parse("command line", quoted(binding))
    return Experiment(**{name.lower(): _bound(name) for name in SPECS})


def sized(files: Sequence[str], size: str, given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and bindings of a model size laid over `files` (default: the pretraining mixture).

    A shipped size adds its files; another one bindings, which those that are given override.

    Raises:
      UserError: not a size.
    """
    files = [*(files or ["gin/experiments/pretrain.gin"])]
    shipped = {path.stem: f"gin/models/{path.name}" for path in (assets.root() / "gin/models").glob("*.gin")}
    name = size.strip().lower()
    models = {n: path for n, path in shipped.items() if n == "tiny" or n[0].isdigit()}
    if name in models:
        experiment = assets.root() / "gin" / "experiments" / f"pretrain_{name}.gin"
        own = bindings_in(experiment) if experiment.exists() else []
        return [*files, models[name]], [*own, *given]
    return files, [*sizes.bindings(sizes.parse(size)), *given]


def bindings_in(path: Path) -> list[str]:
    """The bindings of a gin file, without those of files that it includes, as `override` takes them."""
    found = (s for s in _statements(str(path), _read(path)) if isinstance(s, config_parser.BindingStatement))
    return [f"{s.selector}.{s.arg_name}={s.value!r}" for s in found]


def style(name: str) -> list[str]:
    """The bindings of a preset of prompts: a shipped one by its name, or any gin file.

    Raises UserError: there is none, with near names.
    """
    shipped = {path.stem: path for path in sorted((assets.root() / "gin/prompts").glob("*.gin"))}
    if name not in shipped and not Path(name).suffix:
        raise UserError(f"unknown style {name!r}{near_names(name, list(shipped))}; or give a gin file")
    return bindings_in(shipped.get(name) or _find_gin(name))


def override(experiment: Experiment, bindings: Sequence[str]) -> Experiment:
    """`experiment` (say of a checkpoint) with command-line bindings laid over it."""
    changes: dict[str, dict[str, object]] = {}
    for text in map(quoted, bindings):
        for statement in _statements("command line", text):
            changes.setdefault(statement.selector.lower(), {})[statement.arg_name] = statement.value
    parts = {n: getattr(experiment, n).replace(**fields) for n, fields in changes.items()}
    return experiment.replace(**parts)


def quoted(binding: str) -> str:
    """Turns NAME.field=value into gin: `--gin.STORE.path=a/b.c` needs no quotes of its own.

    Raises UserError where there is no `=`.
    """
    key, separator, value = binding.partition("=")
    if not separator:
        raise UserError(f"binding {binding!r}: expected NAME.field=value")
    written = value.strip()
    try:
        ast.literal_eval(written)
    except (ValueError, SyntaxError):
        written = repr(written)
    return f"{key.strip()} = {written}"


def _bound(name: str) -> specs.Spec:
    """The spec with gin's bindings; gin appends a line of its own to errors, which is cut."""
    try:
        return gin.get_configurable(name)()
    except UserError as error:
        raise UserError(str(error).split("\n")[0]) from None


@functools.cache
def register() -> None:
    """Makes the specs known to gin under their short names, once."""
    for name, cls in SPECS.items():
        gin.register(name, module="poet")(cls)


def _find_gin(path: str) -> Path:
    try:
        return assets.find(path, "gin file")
    except UserError as error:
        shipped = sorted(str(p.relative_to(assets.root())) for p in (assets.root() / "gin").rglob("*.gin"))
        raise UserError(f"{error}{near_names(path, shipped)}") from None
    except OSError as error:
        raise UserError(f"gin file {path[:80]!r}: {error.strerror}") from None


def _read(path: Path) -> str:
    """The text of a gin file.

    Raises:
      UserError: it is no regular file, too large for one, not UTF-8, or cannot be read.
    """
    if not path.is_file():
        kind = "folder" if path.is_dir() else "pipe or device"
        raise UserError(f"gin file {path} is a {kind}: give a file")
    try:
        return limited(path, foreign.WRITTEN).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"gin file {path} is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"gin file {path} cannot be read: {error.strerror}") from None


def _parse(place: str, text: str, within: tuple[Path, ...] = ()) -> None:
    """Binds what a text says; `within` are the files that include it, itself last."""
    for statement in _statements(place, text):
        if isinstance(statement, config_parser.IncludeStatement):
            path = _included(place, statement.filename, within)
            if path.resolve() in within:
                raise UserError(f"{place}: includes {path}, which includes it: remove one of the includes")
            _parse(str(path), _read(path), (*within, path.resolve()))
        else:
            gin.bind_parameter(f"{statement.selector}.{statement.arg_name}", statement.value)


def _included(place: str, name: str, within: tuple[Path, ...]) -> Path:
    """A file of others includes what lies below its own folder, below the current one, or among the shipped files."""
    try:
        path = _find_gin(name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    folders = (Path.cwd(), assets.root(), *(file.parent for file in within[-1:]))
    if not any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise UserError(
            f"{place}: includes {path}, which lies neither below the file's folder, nor below the current one, nor "
            "among the shipped files: copy it there, or give it by --gin_file"
        )
    return path


def _statements(place: str, text: str) -> Iterator[config_parser.BindingStatement]:
    """Checked statements of a config text, in order."""
    try:
        for statement in config_parser.ConfigParser(io.StringIO(text), _NoReferences()):
            statement = _present_name(statement, place)
            _check(statement)
            yield statement
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise UserError(f"{place}: not valid gin: {_one_line(error)}") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{place}: not valid gin: its brackets are nested too deeply") from None


def _present_name(statement: Any, place: str) -> Any:
    """The statement with the name that its field has now; a field's earlier name costs a warning."""
    spec = SPECS.get(getattr(statement, "selector", None))
    now = spec.RENAMED.get(statement.arg_name) if spec else None
    if now is None:
        return statement
    _LOG.warning(
        "%s: %s.%s is called %s.%s now; the next release drops the old name",
        place,
        statement.selector,
        statement.arg_name,
        statement.selector,
        now,
    )
    return statement._replace(arg_name=now)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _check(statement: object) -> None:
    if isinstance(statement, config_parser.IncludeStatement):
        return
    line = f"line {statement.location.line_num}: "
    if isinstance(statement, config_parser.ImportStatement):
        raise UserError(f"{line}imports are not allowed in a config")
    if not isinstance(statement, config_parser.BindingStatement):
        return
    name, field = statement.selector, statement.arg_name
    if statement.scope:
        raise UserError(f"{line}scope {statement.scope!r} is not allowed: write {name}.{field}")
    if not field:
        raise UserError(f"{line}macro {name!r} is not allowed: bind NAME.field = value")
    if name not in SPECS:
        raise UserError(f"{line}unknown name {name!r}{near_names(name, sorted(SPECS))}")
    fields = [f.name for f in dataclasses.fields(SPECS[name])]
    if field not in fields:
        raise UserError(f"{line}{name} has no field {field!r}{near_names(field, fields)}")
