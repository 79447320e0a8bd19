"""``moesim new``: a commented file to begin with, which ``moesim check`` accepts as it is; or a
policy with its test, as its guide has it.
"""

from __future__ import annotations

import os
import re
import shlex
from functools import cache
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import NamedTuple

from simulator.base.data import shipped_folder
from simulator.base.errors import UserError, check_known

FOLDERS = {
    "scenario": Path(),
    "plan": Path(),
    "cluster": Path("cluster_configs"),
    "model": Path("workloads/models"),
}
"""Folder of each kind of file, from the current folder: where its name is found."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODULE = re.compile(r"[a-z_][a-z0-9_]*")
_BLOCK = re.compile(r"```(?:python|toml)\n# (\S+\.(?:py|toml))\n(.*?)```", re.DOTALL)
"""A file on a guide's page: its path and its text."""
_TABLE = re.compile(r"`(\S+\.csv)`:\n\n```text\n(.*?)```", re.DOTALL)
"""A table there, which has no comments."""
_COMMAND = re.compile(
    r"^\$ moesim (run (?:[^\n\\]|\\\n)*--allow-code(?:[^\n\\]|\\\n)*)", re.MULTILINE
)
_PACKAGE = "my_package"
_TEST = '''"""{kind} runs as its guide has it, and what it returns keeps its contract."""

import subprocess
import sys
from pathlib import Path

COMMAND = {command}


def test_it_runs_and_keeps_its_contract(tmp_path):
    run = [sys.executable, "-m", "simulator", *COMMAND, "--out", str(tmp_path / "out")]
    subprocess.run(run, cwd=Path(__file__).parents[1], check=True)
'''


class Guide(NamedTuple):
    """Page of one kind of policy."""

    module: str
    """Name of its policy's file."""
    texts: dict[str, str]
    """Files of the page, by path."""
    command: list[str]
    """Arguments that run the policy."""


@cache
def read_guides() -> dict[str, Guide]:
    """Read the guides to policies, by family."""
    folder, found = shipped_folder() / "docs" / "guides", dict[str, Guide]()
    shared = dict(_BLOCK.findall((folder / "index.md").read_text(encoding="utf-8")))
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        texts = dict(_BLOCK.findall(text) + _TABLE.findall(text))
        modules = [Path(path).stem for path in texts if path.endswith(".py")]
        command = _COMMAND.search(text)
        if len(modules) == 1 and command is not None:
            arguments = shlex.split(command[1].replace("\\\n", " "))
            found[page.stem] = Guide(modules[0], shared | texts, arguments)
    return found


def read_template(kind: str) -> str:
    """The text of a kind of file, with ``NAME`` for its name.

    Raises:
        UserError: if there is no such kind.
    """
    check_known(kind, (*FOLDERS, *read_guides()), "new: unknown kind")
    return (files(__package__) / "templates" / f"{kind}.toml").read_text(encoding="utf-8")


def write_new(kind: str, name: str) -> Path:
    """Write the template of ``kind`` as ``NAME.toml`` where a file of that name is found; or a
    policy as ``my_package/NAME.py`` with its test, and what its guide runs beside it.

    Raises:
        UserError: if there is no such kind, the name is none, or the file is there already.
    """
    if kind in read_guides():
        return _write_policy(kind, name)
    text = read_template(kind)
    stem = name.removesuffix(".toml")
    if not _NAME.fullmatch(stem):
        raise UserError(
            f"new {kind} {name!r}: a name has letters, digits, '-', '_' and '.', such as my-{kind}"
        )
    path = FOLDERS[kind] / f"{stem}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text.replace("NAME", stem))
    except FileExistsError:
        raise UserError(f"{path}: is there already; choose another name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def _write_policy(family: str, name: str) -> Path:
    guide, path = read_guides()[family], Path(_PACKAGE) / f"{name}.py"
    if not _MODULE.fullmatch(name) or iskeyword(name):
        raise UserError(
            f"new {family} {name!r}: a name has small letters, digits and '_', and means nothing "
            "to Python, such as mine"
        )
    before, after = f"{_PACKAGE}.{guide.module}", f"{_PACKAGE}.{name}"
    texts = {file: text.replace(before, after) for file, text in guide.texts.items()}
    policy = texts.pop(f"{_PACKAGE}/{guide.module}.py")
    command = [argument.replace(before, after) for argument in guide.command]
    test = path.with_name(f"test_{name}.py")
    for own in (path, test):
        if os.path.lexists(own):
            raise UserError(f"{own}: is there already; choose another name")
    for file, text in texts.items():
        if after in text and Path(file).exists():
            raise UserError(
                f"{file}: is there already, of another policy; move it, or change folder"
            )
    texts |= {str(path): policy, str(test): _TEST.format(kind=after, command=repr(command))}
    try:
        for file, text in texts.items():
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            if not Path(file).exists():
                with Path(file).open("x", encoding="utf-8") as written:
                    written.write(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return path
