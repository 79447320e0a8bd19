"""What a store's database holds, read without the store."""

import contextlib
import sqlite3
from pathlib import Path

from simulator.base.caches import DATABASE


def query(folder: Path, sql: str, *values: object) -> list[tuple]:
    """Rows that a statement gives; what it changes is committed."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE, timeout=60)) as database, database:
        return database.execute(sql, values).fetchall()


def read_findings(folder: Path) -> dict[str, str]:
    """JSON by digest; nothing where there is no table yet."""
    if not (folder / DATABASE).exists():
        return {}
    if not query(folder, "SELECT name FROM sqlite_master WHERE name = 'findings'"):
        return {}
    return dict(query(folder, "SELECT digest, value FROM findings"))
