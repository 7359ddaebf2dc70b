"""Tiny records to train on."""

import pytest
import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_records(tmp_path_factory.mktemp("records"))
