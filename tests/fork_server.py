"""Runs the command line in forked processes, so that one import of torch serves them all.

Reads one JSON object a line. `{"argv": [...], "folder": "...", "prelude": "..."}` starts
`quadranas argv...` in a folder, its output in `stdout` and `stderr` there, after executing the
prelude; the answer is the process id. `{"wait": pid}` is answered with the exit code, negative
for a signal. `tests/command_line.py` is the client.
"""

import json
import os
import sys
import traceback
from typing import Any

# Imported before the fork; nothing here computes, so no thread has to survive it.
import kornia.augmentation
import sklearn.datasets
import torch._dynamo  # the optimisers want it
import torch.utils.tensorboard

import quadranas.commands.search
import quadranas.commands.train
import quadranas.reports.run_report
from quadranas.cli.app import main

PRELOADED = (kornia, sklearn, torch, quadranas)


def run(job: dict[str, Any]) -> None:
    """Become the process of one command; never returns."""
    code = 1
    try:
        os.chdir(job["folder"])
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(name, flags, 0o644), number)
        sys.argv = ["quadranas", *job["argv"]]
        exec(job["prelude"], {})
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer until the client hangs up."""
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                run(job)
        os.write(1, f"{answer}\n".encode())


if __name__ == "__main__":
    serve()
