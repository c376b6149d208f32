"""Completion in the shell: installed as a user does, and asked as bash asks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CHECKOUT

ASK = """
source ~/.bashrc
ask() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  function=$(complete -p quadranas | sed -E 's/.* -F ([^ ]+) .*/\\1/')
  "$function" quadranas "${COMP_WORDS[-1]}"
  echo "${COMPREPLY[*]}"
}
ask quadranas sea
ask quadranas search --bud
"""


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    script = Path(sys.executable).with_name("quadranas")
    if bash is None or not script.is_file():
        pytest.skip("needs bash and an installed quadranas")

    def run(code: str) -> str:
        done = subprocess.run(
            [bash, "-c", code],
            env={
                "HOME": str(tmp_path),
                "PATH": f"{script.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(CHECKOUT),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    shown = run("quadranas --show-completion; true")
    assert "complete -o default -F _quadranas_completion quadranas" in shown
    assert "bash completion installed" in run("quadranas --install-completion; true")
    assert run(ASK).split() == ["search", "--budget"]
