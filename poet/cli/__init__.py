"""`poet COMMAND`: arguments in, one command called, errors as one clear message.

Exit codes are those of `poet.runs.exits`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import select
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from poet import __version__
from poet.cli import logs
from poet.cli.command import NONE, SETTINGS
from poet.cli.commands import COMMANDS
from poet.runs import compile_cache, exits
from poet.spec import Failure, UserError, near_names

EXIT_FAILED, EXIT_USER = exits.FAILED, exits.USER
GIN_PREFIX = "--gin."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments, rest = _wrapped(list(sys.argv[1:] if argv is None else argv))
    bindings = [a[len(GIN_PREFIX) :] for a in arguments if a.startswith(GIN_PREFIX)]
    args = _parse([a for a in arguments if not a.startswith(GIN_PREFIX)])
    args.bindings, args.rest = bindings, rest
    if bindings and COMMANDS[args.command].settings == NONE:
        flags = " ".join(GIN_PREFIX + binding for binding in bindings)
        print(f"poet {args.command}: error: it takes no settings, got {flags}", file=sys.stderr)
        return EXIT_USER
    level = logging.WARNING if COMMANDS[args.command].quiet else logging.INFO
    args.log = logs.file_of(args.command)
    if argv is None and args.log and not args.verbose:  # A process of its own.
        logs.native_to(args.log)
    logs.set_up(args.log, level=level, verbose=args.verbose)
    compile_cache.use()
    code = _run(args)
    if code not in (exits.FINISHED, exits.RESTART) and "poet.distributed.processes" in sys.modules:
        sys.modules["poet.distributed.processes"].leave(code)
    return code


def _wrapped(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The own arguments, and those of another command that stands behind `--` (`Command.wraps`)."""
    if "--" not in arguments or arguments[0] not in COMMANDS or not COMMANDS[arguments[0]].wraps:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _run(args: argparse.Namespace) -> int:
    try:
        with _output(args):
            code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"poet {args.command}: error: {error}", file=sys.stderr)
        return exits.of(error)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "poet":
            raise
        print(f"poet {args.command}: error: {_missing_package(error)}", file=sys.stderr)
        return EXIT_USER
    except Failure as error:
        print(f"poet {args.command}: failed: {error}{_log_of(args)}", file=sys.stderr)
        return exits.of(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return EXIT_FAILED
        code = exits.of(error)
        if code == exits.FAILED:
            return _crash(args, error)
        where = f"{error.filename}: " if error.filename else ""
        print(f"poet {args.command}: error: {where}{error.strerror}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(f"poet {args.command}: interrupted", file=sys.stderr)
        return exits.INTERRUPTED
    except Exception as error:
        return _crash(args, error)


@contextlib.contextmanager
def _output(args: argparse.Namespace) -> Iterator[None]:
    """A command whose --out is a URL writes to a folder of this machine instead, which is then published."""
    out = getattr(args, "out", None)
    if not out or not COMMANDS[args.command].publishes or "://" not in out:
        yield
        return
    from poet.runs.buckets import mirror, outbox

    if getattr(args, "process", None):  # Another one of these sends it.
        args.out = str(mirror.workdir(out))
        yield
        return
    with outbox.published(out, _first) as folder:
        args.out = str(folder)
        yield


def _first() -> bool:
    """Whether this process is the one of several that writes."""
    joined = sys.modules.get("poet.distributed.processes")
    return joined is None or joined.first()


def _reader_left() -> bool:
    """Whether nobody reads the output any more, as behind `| head`; the rest of it then goes nowhere."""
    output, poll = sys.stdout.fileno(), select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _crash(args: argparse.Namespace, error: Exception) -> int:
    """The traceback first, the cause alone on the last line."""
    logging.getLogger("poet").exception("%s failed", args.command)
    cause = f"{type(error).__name__}: {error}{_log_of(args)}"
    print(f"poet {args.command}: failed: {cause}", file=sys.stderr)
    return exits.of(error)


def _log_of(args: argparse.Namespace) -> str:
    return f" (log: {args.log})" if args.log is not None and args.log.exists() else ""


def _missing_package(error: ModuleNotFoundError) -> str:
    from poet.runs import assets

    extras = {
        "vizdoom": "freedoom",
        "apache_beam": "beam",
        "ray": "ray",
        "libtpu": "tpu",
        "ale_py": "atari",
        "gcsfs": "gcs",
        "s3fs": "s3",
    }
    package = (error.name or "").split(".")[0]
    command = assets.install(extras[package]) if package in extras else f"pip install {package}"
    return f"the package {package!r} is missing: {command}"


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds the default of a flag to its help, where it is a number or a name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help
        if (
            not text
            or "default" in text
            or type(default) not in (int, float, str)
            or default in ("", argparse.SUPPRESS)
        ):
            return text
        return f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER, f"{self.prog}: error: {message}\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; an unknown command or flag is refused first, with similar names."""
    parser = _parser()
    command = next((a for a in arguments if not a.startswith("-")), None)
    if command is None:
        if not arguments:
            parser.print_help(sys.stderr)
            parser.exit(EXIT_USER)
        return parser.parse_args(arguments)
    if command not in COMMANDS:
        parser.error(f"unknown command {command!r}{near_names(command, sorted(COMMANDS))}")
    own = _command_parser(command)
    allowed = sorted(set(re.findall(r"--[\w-]+", own.format_usage())) | {"--help"})
    for flag in (a.partition("=")[0] for a in arguments if a.startswith("--") and a != "--"):
        if not any(known.startswith(flag) for known in [*allowed, "--version"]):
            own.error(_unknown_flag(command, flag, allowed))
    return parser.parse_args(arguments)


def _unknown_flag(command: str, flag: str, allowed: Sequence[str]) -> str:
    message = f"unknown flag {flag}{near_names(flag, allowed)}"
    if COMMANDS[command].settings == NONE:
        return message
    return f"{message}; settings are {GIN_PREFIX}NAME.field=value"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="poet",
        description="Train, evaluate and serve a VideoPoet-class model.",
        epilog="`poet COMMAND --help` explains a command and gives an example.",
    )
    parser.add_argument("--version", action="version", version=f"poet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        lines = [f"example:\n  poet {name} {command.example}", SETTINGS[command.settings]]
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            parents=[_command_parser(name)],
            add_help=False,
            formatter_class=_Help,
            epilog="\n\n".join(filter(None, lines)),
        )
        sub.set_defaults(run=command.run)
    return parser


def _command_parser(name: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"poet {name}")
    parser.add_argument("--verbose", action="store_true", help="show the whole log")
    COMMANDS[name].arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
