"""Which MLflow, and a client for it with the settings that an uploader needs."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefleet.errors import BackendUnreachable, UserError
from sparsefleet.home import write_private
from sparsefleet.redact import passwords_of, without_user
from sparsefleet.track import database

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FORCED = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # the asynchronous client acknowledges what it can lose
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A request that is sent twice by itself makes two runs; we look first, then send again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def tracking_uri(home: Path, uri: str | None = None) -> str:
    """``uri``, else ``MLFLOW_TRACKING_URI``, else the SQLite file of ``home``."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or local_uri(home)


def local_uri(home: Path) -> str:
    """The URI of the home's own SQLite file."""
    return f"sqlite:///{home.absolute() / 'mlflow.db'}"


def artifact_location(home: Path, uri: str) -> str | None:
    """Where a new experiment's artifacts go: beside the home's own database, else where the server says."""
    return (home.absolute() / "mlartifacts").as_uri() if uri == local_uri(home) else None


def environment() -> dict[str, str]:
    """This process's environment with MLflow made safe: no pickles, no telemetry, no retries of its own."""
    return {**_DEFAULTS, **os.environ, **_FORCED}


def connect(uri: str, *, create: bool = False) -> MlflowClient:
    """A client for ``uri``. Imports mlflow.

    Args:
        create: make the SQLite database of ``uri`` if there is none; the uploader does it once, before anything else touches it.

    Raises:
        BackendUnreachable: nothing answers there.
        UserError: there is no such database.
    """
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not create and not file.exists():
        raise UserError(f"there is no MLflow database {file}", fix="submit a grid first; its uploader makes the database")
    os.environ.update(environment())
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if uri.startswith("file:") or "://" not in uri:
        raise BackendUnreachable(
            f"MLflow's file store is gone: {uri!r}", fix="use sqlite:///PATH or http://HOST:PORT as MLFLOW_TRACKING_URI"
        )
    try:
        with database.alone(uri):
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    except ImportError as error:
        if database.is_postgres(uri):
            raise BackendUnreachable(
                "there is no driver for PostgreSQL", cause=str(error), fix="pip install 'sparsefleet[postgresql]'"
            ) from error
        raise unreachable(uri, error) from error
    except (MlflowException, OSError) as error:
        raise unreachable(uri, error) from error
    return client


def unreachable(uri: str, error: BaseException) -> BackendUnreachable:
    """The error that says which server did not answer and why."""
    return BackendUnreachable(
        f"MLflow at {without_user(uri)} did not answer",
        cause=without_secrets(str(error), uri).partition("\n")[0][:300],
        fix="start it, or unset MLFLOW_TRACKING_URI to write to the home's own database",
    )


def without_secrets(text: str, uri: str) -> str:
    """``text`` with the URI's user and password taken out, wherever the password stands."""
    text = text.replace(uri, without_user(uri))
    for password in passwords_of(uri):
        text = text.replace(password, "***")
    return text


def is_there(client: Any) -> bool:
    """True if the server answers."""
    from mlflow.exceptions import MlflowException

    try:
        client.search_experiments(max_results=1)
    except (MlflowException, OSError):
        return False
    return True


def home_id(home: Path) -> str:
    """The id that tells this home's runs from those of other homes on one server; made once."""
    path = home / "tracking-id"
    if not path.exists():
        part = home / f"tracking-id.{os.getpid()}"
        write_private(part, uuid.uuid4().hex[:16] + "\n")
        try:
            os.link(part, path)  # whoever is first decides
        except FileExistsError:
            pass
        finally:
            part.unlink()
    return path.read_text(encoding="ascii").strip()
