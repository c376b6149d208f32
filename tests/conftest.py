"""Registers `tests/fixtures.py` where tests run."""

import gc
import signal
import sys
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, which import torch, unless pytest-xdist's workers run the tests.

    The process that starts them would need three seconds for that, and they wait for it.
    """
    if not config.getoption("numprocesses", None):
        gc.disable()  # until the tests are collected, since nothing of it goes before
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a worker of pytest-xdist has ended that crashed; it itself may not have said it."""
    if error:
        code = node.gateway._io.popen.wait(10)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        sys.stderr.write(f"{node.gateway.id} ended by {how}\n")
