"""The first touch of a database of MLflow's: its tables are made once, whoever else comes at the same moment.

MLflow makes them itself when it meets an empty database, without a lock that another machine would see; of several that begin at once, most fail.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = 0x5350_4652  # "SPFR": any number that nobody else takes
_CONNECT_S = 10
_POSTGRES = ("postgresql", "postgres")


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """No other process of ours is in here for the same database.

    A lock file beside a SQLite database, an advisory lock in a PostgreSQL one; the kernel or the server frees it when its holder dies. Other
    databases and servers have none: there MLflow's own, per machine, must do.
    """
    if uri.startswith("sqlite:///"):
        with _of_file(Path(uri.removeprefix("sqlite:///").partition("?")[0])):
            yield
    elif is_postgres(uri):
        with _of_postgres(uri):
            yield
    else:
        yield


def is_postgres(uri: str) -> bool:
    """True for a database of PostgreSQL, whatever its driver."""
    return uri.partition(":")[0].partition("+")[0] in _POSTGRES


@contextmanager
def _of_file(database: Path) -> Iterator[None]:
    fd = os.open(database.with_name(f"{database.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def _of_postgres(uri: str) -> Iterator[None]:
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    engine = sqlalchemy.create_engine(
        url.set(drivername=url.drivername.replace("postgres", "postgresql", 1)) if url.drivername == "postgres" else url,
        poolclass=sqlalchemy.pool.NullPool,
        connect_args={"connect_timeout": _CONNECT_S},
    )
    try:
        connection = engine.connect()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise OSError(str(error.__cause__ or error)) from error
    with connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        yield  # the lock ends with the connection
