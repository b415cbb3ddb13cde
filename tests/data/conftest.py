"""One small token store for all tests of the data room."""

from __future__ import annotations

import pytest
from token_stores import Store, make_experiment, write_store

from poet.spec import Experiment


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="session")
def experiment(store: Store) -> Experiment:
    return make_experiment(store.path)
