"""Unpacking of gzip, xz, zstd and zip files within bounds: a megabyte can hold gigabytes of
nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from simulator.base.errors import UserError
from simulator.base.reading import MOST_BYTES, bytes_text, open_file, read_bytes, refuse_damage

_FREE_BYTES = 64 << 20
"""Bytes that any file may unpack to, harmless on any machine."""
_MOST_RATIO = 100
"""Unpacked bytes for each packed byte: request logs reach 15, recorded experts 3, zeros 1,000."""
_PIECE_BYTES = 1 << 20
"""Bytes unpacked between two checks of the bound."""
_GZIP, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"


def most_unpacked(packed_bytes: int) -> int:
    """Bytes that a packed file may unpack to, or claim in its headers.

    >>> most_unpacked(550) == 64 << 20, most_unpacked(1 << 20) == 100 << 20
    (True, True)
    """
    return min(MOST_BYTES, max(_FREE_BYTES, _MOST_RATIO * packed_bytes))


def check_claim(where: Path | str, claimed_bytes: int, packed_bytes: int) -> None:
    """Refuse a file whose headers claim more than a file of its size holds.

    Raises:
        UserError: with the size, the bound and what would do.
    """
    most = most_unpacked(packed_bytes)
    if claimed_bytes > most:
        raise UserError(
            f"{where}: claims {bytes_text(claimed_bytes)}, and a file of "
            f"{bytes_text(packed_bytes)} may hold {bytes_text(most)}; write it again "
            "without compression, or a part of it"
        )


def unpack(path: Path) -> bytes:
    """Read a file's contents, decompressed where its first bytes say that it is packed (gzip, xz,
    zstd, or a zip of one file that is no archive of arrays).

    Raises:
        UserError: if the file is missing, unreadable or damaged, or unpacks to too much.
    """
    with open_file(path) as raw:
        magic = raw.read(len(_XZ))
    if not magic.startswith((_GZIP, _XZ, _ZSTD, _ZIP)):
        return read_bytes(path)
    size = path.stat().st_size
    with open_file(path) as raw, refuse_damage(path, "a whole packed file"):
        return _read_bounded(path, _unpacking(path, raw, magic), size)


@contextlib.contextmanager
def open_archive(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members claim no more than a file of its size may; read them with
    :func:`read_member`.

    Args:
        what: the archive should be, for errors.

    Raises:
        UserError: if it is missing or no zip archive, claims too much, or something damaged is met
            within.
    """
    with open_file(path) as raw, refuse_damage(path, what), zipfile.ZipFile(raw) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        check_claim(path, claimed, path.stat().st_size)
        yield archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member's contents, which may be no longer than the archive says: piece by piece, since
    reading at once would unpack all of it first.

    Raises:
        ValueError: if it is longer, or packed in another way than archives of arrays are.
        KeyError: if there is no such member.
    """
    content = io.BytesIO()
    with _open_member(archive, name) as stream:
        while piece := stream.read(_PIECE_BYTES):
            content.write(piece)
    return content.getvalue()


def _open_member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a stream of a member that unpacks piece by piece, as only deflate does."""
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is neither stored nor deflated")
    return archive.open(name)


def _unpacking(path: Path, raw: BinaryIO, magic: bytes) -> IO[bytes] | Any:
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw)
    if magic == _XZ:
        return lzma.LZMAFile(raw)
    if magic.startswith(_ZSTD):
        import pyarrow as pa

        return pa.CompressedInputStream(raw, "zstd")
    archive = zipfile.ZipFile(raw)
    names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if len(names) != 1:
        raise UserError(
            f"{path}: is a zip archive of {len(names)} files; unpack it and name one of them"
        )
    return _open_member(archive, names[0])


def _read_bounded(path: Path, stream: IO[bytes], packed_bytes: int) -> bytes:
    most, unpacked = most_unpacked(packed_bytes), io.BytesIO()
    while piece := stream.read(_PIECE_BYTES):
        unpacked.write(piece)
        if unpacked.tell() > most:
            raise UserError(
                f"{path}: unpacks to more than {bytes_text(most)}, which is all that is taken from "
                f"a packed file of {bytes_text(packed_bytes)}; unpack it and name what comes out"
            )
    return unpacked.getvalue()
