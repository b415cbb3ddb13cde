"""Commands that Markdown files print: their flags are those of the program, their files are there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from poet import cli
from poet.cli import commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
ENDS = {"|", "||", "&&", "&", ";", ">", ">>", "2>", "<", "do", "done"}


def printed(page: str) -> list[list[str]]:
    """The words of every command in a block of bash."""
    blocks = re.findall(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", (ROOT / page).read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word.rstrip(";") != word or word in ENDS:
                words += [word.rstrip(";")] if word not in ENDS else []
                found += [words] if words else []
                words = []
            elif words or not re.fullmatch(r"\$|\w+=\S*", word):  # A prompt and variables may lead.
                words.append(word)
    return found


COMMANDS = [(page, words) for page in PAGES for words in printed(page)]
OF_POET = [(page, words[1:]) for page, words in COMMANDS if words[0] == "poet"]


def test_commands_are_found():
    assert len(OF_POET) > 20 and {words[0] for _, words in OF_POET} <= set(commands.COMMANDS)


@pytest.mark.parametrize("page, words", OF_POET, ids=[f"{p}-{' '.join(w)[:60]}" for p, w in OF_POET])
def test_a_command_of_poet_parses(page: str, words: list[str]):
    plain = [re.sub(r"\$\w+", "1", word) for word in words if word != "..." and not word.startswith(cli.GIN_PREFIX)]
    own, wrapped = cli._wrapped(plain)
    assert cli._parse(own).command == words[0] and (not wrapped or cli._parse(wrapped).command == wrapped[0])
    for file in re.findall(r"\bgin/\S+\.gin\b", " ".join(words)):
        assert (ROOT / file).exists(), file


def test_scripts_that_are_called_are_there():
    called = {
        (page, word)
        for page, words in COMMANDS
        if words[0] in ("python", "bash", "pytest")
        for word in words[1:]
        if re.fullmatch(r"(launch|tests|data)/[\w/]+\.(py|sh)", word)
    }
    assert called and not [pair for pair in called if not (ROOT / pair[1]).exists()]
