"""The real servers, each started once, when the first test asks for it; a test whose server cannot be had is skipped with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import backend_servers as servers
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("backends")


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    programs = servers.postgres_programs()
    if programs is None:
        pytest.skip("postgresql is not installed: apt-get install postgresql")
    with servers.postgres(programs) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.ObjectStore]:
    with servers.object_store(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="session")
def mlflow_uri(postgres: servers.Postgres, s3: servers.ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server: rows in PostgreSQL, artifacts through it in S3."""
    folder = tmp_path_factory.mktemp("mlflow")
    with servers.mlflow_server(folder, postgres.create("served"), s3.environment) as address:
        yield address


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the second node of the cluster does not see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def ray(shared: Path, s3: servers.ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.RayCluster]:
    if not servers.can_hide():
        pytest.skip("this user may not mount, so no node can be kept from seeing the home: unshare --mount")
    folder = tmp_path_factory.mktemp("ray")
    with servers.ray_cluster(folder, shared, s3.environment) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)
