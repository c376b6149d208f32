"""`--compile`: the same training by a compiled network, and a message where nothing compiles."""

import shutil
from pathlib import Path

import pytest

from tests.command_line import Outcome, Server

NO_COMPILER = """
import os
import torch._inductor.config
torch._inductor.config.cpp.cxx = ("no-such-compiler",)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.abspath("cache")
"""


def train(
    server: Server, folder: Path, run: Path, pictures: Path, *options: str, prelude: str = ""
) -> Outcome:
    folder.mkdir()
    shutil.copy(run / "architecture.json", folder / "network.json")
    arguments = ("train", "network.json", "--epochs", "1", "--accelerator", "cpu", "--json")
    where = ("--data", str(pictures), "--output", "run")
    return server.run(folder, *arguments, *where, *options, prelude=prelude)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_network_trains_alike(
    tmp_path: Path, server: Server, finished_run: Path, pictures: Path
) -> None:
    plain = train(server, tmp_path / "plain", finished_run, pictures)
    compiled = train(server, tmp_path / "compiled", finished_run, pictures, "--compile")
    assert compiled.code == 0, compiled.err
    assert "compile: true" in (tmp_path / "compiled/run/config.yaml").read_text("utf-8")
    assert compiled.json()["accuracy"] == pytest.approx(plain.json()["accuracy"], abs=0.2)


@pytest.mark.slow
def test_without_a_compiler_there_is_one_message(
    tmp_path: Path, server: Server, finished_run: Path, pictures: Path
) -> None:
    options = ("--compile",)
    outcome = train(
        server, tmp_path / "run", finished_run, pictures, *options, prelude=NO_COMPILER
    )
    assert outcome.code == 2, outcome.err
    assert outcome.err.count("error: torch.compile cannot compile the network:") == 1
    assert "omit --compile" in outcome.err
