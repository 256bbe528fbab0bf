from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparsefleet.track import server


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, to copy: making one takes seconds."""
    home = tmp_path_factory.mktemp("empty")
    server.connect(server.local_uri(home), create=True)
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with an empty MLflow database, and no settings from outside."""
    for name in ("MLFLOW_TRACKING_URI", "SPARSEFLEET_ARTIFACTS", "SPARSEFLEET_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder
