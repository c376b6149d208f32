"""TensorBoard's files: an error of its writer is one message, and never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from quadranas.errors import QuadranasError
from quadranas.runs.run_folder import RunFolder
from quadranas.training.curves import Curves
from tests.command_line import CHECKOUT

FULL = """
import resource, sys, time
from pathlib import Path
from quadranas.errors import QuadranasError
from quadranas.runs.run_folder import RunFolder
from quadranas.training.curves import Curves
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for pause in (0, 0.001):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        with Curves(RunFolder(Path(sys.argv[1]) / str(pause)), 0) as curves:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, most))
            for number in range(1, 100):
                curves.add_metrics({"phase": "train", "loss": 1.0}, number)
                time.sleep(pause)
    except QuadranasError as error:
        print(error)
"""


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=True,
    )
    assert done.stdout == "".join(
        f"cannot write {tmp_path}/{pause}/tensorboard: File too large\n"
        "Free some space, then continue with --resume.\n"
        for pause in ("0", "0.001")
    )
    assert done.stderr == ""


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    with pytest.raises(QuadranasError, match=r"cannot write .*tensorboard: "):
        Curves(RunFolder(tmp_path), 0)


def test_an_earlier_error_counts(tmp_path: Path) -> None:
    curves = Curves(RunFolder(tmp_path), 0)
    close = curves.writer.close

    def fail() -> None:
        close()  # a thread that is left over would hold up every later writer
        (tmp_path / "none" / "x").touch()

    curves.writer.close = fail
    with pytest.raises(ZeroDivisionError), curves:
        raise ZeroDivisionError
