from __future__ import annotations

from typing import Any

import pytest

from tests.hosts.models import HOSTS, KINDS, SHAPES, make_folder, open_host
from tests.oracle import Oracle


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    root = tmp_path_factory.mktemp("models")
    made = {(kind, shape): str(root / f"{kind}-{shape}") for kind in KINDS for shape in SHAPES}
    for (kind, shape), folder in made.items():
        make_folder(kind, shape, folder)
    return made


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def oracle_of(folders: dict[tuple[str, str], str]) -> Any:
    made: dict[tuple[str, str], Oracle] = {}

    def get(kind: str, shape: str = "a") -> Oracle:
        if (kind, shape) not in made:
            made[kind, shape] = Oracle(folders[kind, shape])
        return made[kind, shape]

    return get


@pytest.fixture(scope="session")
def model_of(folders: dict[tuple[str, str], str]) -> Any:
    """Opens each model once; tests leave it as they found it, which some of them prove."""
    made: dict[tuple[str, str, str], Any] = {}

    def get(kind: str, host: str, shape: str = "a") -> Any:
        if (kind, host, shape) not in made:
            made[kind, host, shape] = open_host(folders[kind, shape], host)
        return made[kind, host, shape]

    return get
