"""Registers `tests/fixtures.py` where tests run."""

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, which import torch, unless pytest-xdist's workers run the tests.

    The process that starts them would need three seconds for that, and they wait for it.
    """
    if not config.getoption("numprocesses", None):
        gc.disable()  # until the tests are collected, since nothing of it goes before
        config.pluginmanager.import_plugin("tests.fixtures")
