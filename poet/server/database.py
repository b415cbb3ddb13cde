"""The SQLite file of a job store: its tables, and how it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from poet.spec import UserError

# `user_version` of the database.
FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, object TEXT NOT NULL, owner TEXT NOT NULL,
  task TEXT NOT NULL, request TEXT NOT NULL, seed INTEGER NOT NULL, batch_key TEXT NOT NULL,
  samples INTEGER NOT NULL, idempotency_key TEXT,
  digest TEXT NOT NULL, state TEXT NOT NULL, cancelling INTEGER NOT NULL DEFAULT 0, deleted INTEGER NOT NULL DEFAULT 0,
  deaths INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL,
  error TEXT, result TEXT, size_bytes INTEGER NOT NULL DEFAULT 0, UNIQUE (owner, idempotency_key));
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS uploads (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, file TEXT NOT NULL, about TEXT NOT NULL, created REAL NOT NULL,
  size_bytes INTEGER NOT NULL);
"""


def connect(file: Path) -> sqlite3.Connection:
    """The database in a file.  UserError where it is none, damaged, or of another version."""
    try:
        database = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=10)
        database.row_factory = sqlite3.Row
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):
            raise UserError(f"the job store {file} has format {version}, this version reads {FORMAT}")
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise UserError(f"the job store {file} is damaged ({found}): restore it, or give another folder")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # An accepted job survives a loss of power.
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {FORMAT}")
    except sqlite3.Error as error:
        raise UserError(f"the job store {file} cannot be read ({error}): restore it, or give another folder") from None
    return database
