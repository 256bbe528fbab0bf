"""One connection to the ledger's file, and its transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsefleet.crash_points import passing
from sparsefleet.ledger.packed import Texts
from sparsefleet.space import means_no_space, min_free_mib, no_space


class Transactions:
    """What is written inside ``batch`` is written whole. For one thread."""

    def __init__(self, home: Path, db: sqlite3.Connection) -> None:
        self.home = home
        self._db = db
        self._texts = Texts(db)
        self._depth = 0

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One transaction around several calls: all of them are durable when the block ends, or none.

        Raises:
            NoSpace: the disk is full; nothing of the block is written.
        """
        if self._depth:
            yield
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._depth = 1
            yield
            passing("transaction-before")
            self._db.execute("COMMIT")
            passing("transaction-after")
        except BaseException as error:
            if self._db.in_transaction:  # SQLite has rolled back by itself after some errors, e.g. a full disk
                self._db.execute("ROLLBACK")
            self._texts.forget()
            if isinstance(error, sqlite3.Error) and means_no_space(error):
                raise no_space(self.home, min_free_mib()) from error
            raise
        finally:
            self._depth = 0
