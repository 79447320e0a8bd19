"""Text for training and recording: files by domain, read as bytes, with whole files held out.

The text on every machine is Python's standard library. A domain is a kind of text whose words
differ from the others' (tests, tables of characters, documentation); experts that specialise show
it as different loads.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.reading import open_file, read_bytes
from simulator.base.streams import open_stream

Bytes = NDArray[np.uint8]

MAX_DOMAINS = 8
"""Most domains; the smallest ones beyond are merged into :data:`OTHER`, so that each has enough
text for training."""
OTHER = "other"
TOP = "top level"
"""Domain of files that lie in no subfolder."""
_MAX_DOMAIN_BYTES = 1_000_000
"""Bytes of a domain that are used at most."""
_MIN_DOMAIN_BYTES = 30_000
"""Bytes of a domain below which it is merged into others."""
_HELD_OUT_SHARE = 0.15
"""Share of each domain that is held out."""
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "node_modules"}
_STDLIB_SUFFIXES = {".py", ".txt", ".rst"}
_STDLIB_THEMES = {
    "asyncio": "concurrency",
    "concurrent": "concurrency",
    "multiprocessing": "concurrency",
    "distutils": "packaging",
    "ensurepip": "packaging",
    "importlib": "packaging",
    "lib2to3": "packaging",
    "email": "internet",
    "html": "internet",
    "http": "internet",
    "json": "internet",
    "urllib": "internet",
    "wsgiref": "internet",
    "xml": "internet",
    "xmlrpc": "internet",
    "encodings": "character tables",
    "idlelib": "windows and widgets",
    "tkinter": "windows and widgets",
    "turtledemo": "windows and widgets",
    "pydoc_data": "documentation",
    "test": "tests",
    "unittest": "tests",
}
"""Theme of a package of the standard library; modules at its top are ``modules``, other packages
:data:`OTHER`."""


@dataclass(frozen=True)
class DomainText:
    """Files of one domain, joined."""

    training: Bytes
    held_out: Bytes


@dataclass(frozen=True)
class Corpus:
    """Text by domain, in alphabetical order."""

    domains: dict[str, DomainText]
    description: str
    """Description of the text's source."""

    @property
    def num_training_bytes(self) -> int:
        """Training bytes of all domains."""
        return sum(len(text.training) for text in self.domains.values())


def read_corpus(folder: Path | None, seed: int, context: int) -> Corpus:
    """Read files by domain, some of each held out.

    Args:
        folder: text files; a first-level subfolder is a domain. ``None`` is Python's standard
            library, by theme.
        seed: chooses the files that are read where there are more than enough, and those held out.
        context: tokens of a sequence; a domain needs several times that, in at least two files.

    Raises:
        UserError: if there is no such folder, or too little text in it.
    """
    domains, description = _files_by_domain(folder)
    found: dict[str, DomainText] = {}
    for name, files in domains.items():
        split = _split(_choose_contents(files, seed, name), context)
        if split is not None:
            found[name] = split
    if not found:
        num_files, num_bytes = _size(domains)
        raise UserError(
            f"{description}: too little text: {num_bytes:,} bytes in {num_files} text files; at "
            f"least {2 * _bytes_needed(context):,} bytes are needed, in two files or more of a "
            "subfolder (a domain)"
        )
    return Corpus(dict(sorted(found.items())), description)


def read_texts(folder: Path | None, seed: int) -> tuple[dict[str, bytes], str]:
    """Read all text by domain, none held out (for a model that was trained elsewhere), and describe
    its source.

    Raises:
        UserError: if there is no such folder, or no text in it.
    """
    domains, description = _files_by_domain(folder)
    return {
        name: b"\n".join(_choose_contents(files, seed, name))
        for name, files in sorted(domains.items())
    }, description


def _files_by_domain(folder: Path | None) -> tuple[dict[str, list[Path]], str]:
    if folder is None:
        root = Path(sysconfig.get_path("stdlib"))
        version = sysconfig.get_python_version()
        domains = _group_files(root, _stdlib_theme, _STDLIB_SUFFIXES)
        if not domains:
            raise UserError(
                f"{root}: Python's standard library has no sources here; "
                "name a folder of text files with --text"
            )
        return domains, f"the standard library of Python {version}"
    if not folder.exists():
        raise UserError(f"--text {folder}: no such folder")
    if not folder.is_dir():
        raise UserError(f"--text {folder}: is a file; name a folder of text files")
    domains = _group_files(folder, _subfolder, None)
    if not domains:
        raise UserError(
            f"--text {folder}: no text in it; name a folder of UTF-8 text files, "
            "a subfolder for each domain"
        )
    return domains, f"--text {folder}"


def _group_files(
    root: Path, theme: Callable[[Path], str], suffixes: set[str] | None
) -> dict[str, list[Path]]:
    """Group files by domain; small domains, and those beyond :data:`MAX_DOMAINS`, are merged."""
    domains: dict[str, list[Path]] = {}
    for path in _files(root, suffixes):
        domains.setdefault(theme(path.relative_to(root)), []).append(path)
    if len(domains) <= 1:
        return domains
    size = {name: sum(path.stat().st_size for path in files) for name, files in domains.items()}
    by_size = sorted(size, key=lambda name: (-size[name], name))
    kept = [
        name
        for name in by_size
        if name != OTHER and size[name] >= min(_MIN_DOMAIN_BYTES, max(size.values()) // 4)
    ]
    if len(kept) < len(domains) or len(kept) > MAX_DOMAINS:
        kept = kept[: MAX_DOMAINS - 1]
    rest = [path for name in by_size if name not in kept for path in domains[name]]
    return {name: domains[name] for name in kept} | ({OTHER: sorted(rest)} if rest else {})


def _files(root: Path, suffixes: set[str] | None) -> Iterator[Path]:
    """Yield readable files in a fixed order, without symbolic links and hidden files."""
    for place, folders, names in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith(".")
        )
        for name in sorted(names):
            path = Path(place, name)
            if (
                not name.startswith(".")
                and (suffixes is None or path.suffix in suffixes)
                and _is_text(path)
            ):
                yield path


def _is_text(path: Path) -> bool:
    """Whether the file begins like UTF-8 text and is neither empty nor a link."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        with open_file(path) as file:
            head = file.read(4096)
    except (OSError, UserError):
        return False
    if not head.strip() or b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return (
            error.start > len(head) - 4 and len(head) == 4096
        )  # a character cut by the end of the sample
    return True


def _subfolder(relative: Path) -> str:
    return relative.parts[0] if len(relative.parts) > 1 else TOP


def _stdlib_theme(relative: Path) -> str:
    if len(relative.parts) == 1:
        return "modules"
    if relative.suffix != ".py" and relative.parts[0] != "test":
        return "documentation"
    return _STDLIB_THEMES.get(relative.parts[0], OTHER)


def _choose_contents(files: list[Path], seed: int, name: str) -> list[bytes]:
    """Read files in an order that the seed decides, up to a domain's largest size."""
    order = open_stream(seed, name).permutation(len(files))
    contents: list[bytes] = []
    total = 0
    for place in order:
        content = read_bytes(files[place])
        if contents and total + len(content) > _MAX_DOMAIN_BYTES:
            continue
        contents.append(content[:_MAX_DOMAIN_BYTES])
        total += len(contents[-1])
    return contents


def _bytes_needed(context: int) -> int:
    """Bytes that a domain needs on each side of the split: a few sequences."""
    return 4 * (context + 1)


def _split(contents: list[bytes], context: int) -> DomainText | None:
    """Hold whole files out until they are a share of the domain; ``None`` where one side would have
    too little.
    """
    total = sum(map(len, contents))
    wanted = max(_HELD_OUT_SHARE * total, _bytes_needed(context))
    held_out: list[bytes] = []
    training: list[bytes] = []
    taken = 0
    for content in contents:
        # A file of half the domain stays in training, whatever the order: held-out text is the
        # smaller side.
        if taken < wanted and taken + len(content) <= total / 2:
            held_out.append(content)
            taken += len(content)
        else:
            training.append(content)
    if min(taken, total - taken) < _bytes_needed(context):
        return None
    return DomainText(_join_contents(training), _join_contents(held_out))


def _join_contents(contents: list[bytes]) -> Bytes:
    return np.frombuffer(b"\n".join(contents), dtype=np.uint8)


def _size(domains: dict[str, list[Path]]) -> tuple[int, int]:
    files = [path for paths in domains.values() for path in paths]
    return len(files), sum(path.stat().st_size for path in files)
