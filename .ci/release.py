"""``make release VERSION=0.2.0``: everything of a release but pushing it.

A clean tree whose check is green, and whose dependencies have no known hole (pip-audit) and
licences that leave users free, gets the version, the changelog's unreleased section becomes that of
the version, CITATION.cff follows, the wheel and the sdist are built into dist/, and all of it is
committed and tagged. What fails before the commit leaves the files as they were.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

VERSION_FILE = Path("simulator/__init__.py")
CHANGELOG = Path("CHANGELOG.md")
CITATION = Path("CITATION.cff")
CHANGED = (VERSION_FILE, CHANGELOG, CITATION)
AUDIT = f"{sys.executable} -m pip_audit --skip-editable --progress-spinner off"
_EXTRAS = ("", "real", "hf")
"""Dependencies of users; tools are pinned, and nobody else gets them."""
_FREE = re.compile(r"\b(0?BSD|MIT|Apache|ISC|MPL|Mozilla Public|PSF|Unlicense|Zlib)\b")
_BOUND = re.compile(r"GPL|General Public|Proprietary|Commercial", re.IGNORECASE)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class RefusedError(Exception):
    """Why there is no release."""


def release(version: str, check: str, audit: str) -> None:
    """Prepare a release in the current folder.

    Raises:
        RefusedError: if the version is none or not the next, the tree is not clean, the check or
            the audit fails, a licence is unknown or binds users, or nothing is unreleased.
    """
    _look_at(version)
    if bound := [f"{name}: {said}" for name, said in list_licences().items() if not is_free(said)]:
        raise RefusedError(f"licences to look at: {'; '.join(bound)}")
    for command in (audit, check):
        if subprocess.run(shlex.split(command), check=False).returncode:
            raise RefusedError(f"'{command}' failed; nothing was changed")
    if _git("status", "--porcelain"):
        raise RefusedError(f"'{check}' left changes behind: commit or remove them first")
    texts = _edit(version, f"{datetime.now(UTC):%Y-%m-%d}")
    try:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        subprocess.run([sys.executable, "-m", "hatchling", "build"], check=True)
        _git("commit", "--quiet", "--message", f"Version {version}", *map(str, CHANGED))
    except (OSError, subprocess.CalledProcessError, RefusedError) as error:
        _git("restore", "--staged", "--worktree", *map(str, CHANGED))
        raise RefusedError(f"{error}; files are as they were") from error
    try:
        _git("tag", "--annotate", f"v{version}", "--message", f"moesim {version}")
    except RefusedError as error:
        raise RefusedError(f"{error}; the version is committed, but has no tag") from error


def list_licences(package: str = "moesim", extras: Iterable[str] = _EXTRAS) -> dict[str, str]:
    """Licences of what is installed of a package's dependencies, and of theirs, by name."""
    found: dict[str, str] = {}
    left = [(package, tuple(extras))]
    seen = set(left)
    while left:
        name, wanted = left.pop()
        try:
            about = distribution(name)
        except PackageNotFoundError:  # an extra's that is not installed here
            continue
        classes = about.metadata.get_all("Classifier") or []
        said = [about.metadata["License-Expression"], (about.metadata["License"] or "")[:80]]
        said += [one.rpartition(" :: ")[2] for one in classes if one.startswith("License ::")]
        found[canonicalize_name(name)] = ", ".join(" ".join(one.split()) for one in said if one)
        for one in map(Requirement, about.requires or ()):
            needs = (one.name, ("", *sorted(one.extras)))
            asked = one.marker is None or any(one.marker.evaluate({"extra": x}) for x in wanted)
            if asked and needs not in seen:
                seen.add(needs)
                left.append(needs)
    return dict(sorted(found.items()))


def is_free(licence: str) -> bool:
    """Whether a licence leaves users of moesim free: permissive, or of single files (MPL)."""
    return _FREE.search(licence) is not None and _BOUND.search(licence) is None


def _look_at(version: str) -> None:
    if not _VERSION.fullmatch(version):
        raise RefusedError(f"a version has three numbers, such as 0.2.0, not {version!r}")
    now = _find_version(VERSION_FILE.read_text(encoding="utf-8"))
    if [*map(int, version.split("."))] <= [*map(int, now.split("."))]:
        raise RefusedError(f"version {version} does not follow {now}")
    if _git("tag", "--list", f"v{version}"):
        raise RefusedError(f"tag v{version} is there already")
    if _git("status", "--porcelain"):
        raise RefusedError("the tree has changes: commit or remove them first")


def _edit(version: str, date: str) -> dict[Path, str]:
    """Texts of the files with the new version."""
    texts = {path: path.read_text(encoding="utf-8") for path in CHANGED}
    texts[VERSION_FILE] = texts[VERSION_FILE].replace(
        f'__version__ = "{_find_version(texts[VERSION_FILE])}"', f'__version__ = "{version}"'
    )
    head, title, rest = texts[CHANGELOG].partition("## Unreleased\n")
    if not title or rest.lstrip().startswith("## ") or not rest.strip():
        raise RefusedError(f"{CHANGELOG}: nothing stands under '## Unreleased'")
    texts[CHANGELOG] = f"{head}{title}\n## {version} - {date}\n{rest}"
    cited = re.sub(r"(?m)^version: .*$", f"version: {version}", texts[CITATION])
    texts[CITATION] = re.sub(r"(?m)^date-released: .*$", f'date-released: "{date}"', cited)
    return texts


def _find_version(text: str) -> str:
    found = re.search(r'__version__ = "([\d.]+)"', text)
    if found is None:
        raise RefusedError(f"{VERSION_FILE} states no version")
    return found[1]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RefusedError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> None:
    """Read the command line; exit status 2 where there is no release."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="three numbers, such as 0.2.0")
    parser.add_argument("--check", default="bash .ci/run", help="command that must succeed")
    parser.add_argument("--audit", default=AUDIT, help="command that looks for known holes")
    asked = parser.parse_args()
    try:
        release(asked.version, asked.check, asked.audit)
    except RefusedError as error:
        sys.exit(f"no release: {error}")
    print(
        f"v{asked.version} is committed, tagged and in dist/; git push --follow-tags publishes it"
    )


if __name__ == "__main__":
    main()
