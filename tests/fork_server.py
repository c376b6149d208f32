"""Runs the command line in forked processes, so that one import of torch serves them all.

Reads one JSON object a line. `{"argv": [...], "folder": "...", "prelude": "..."}` starts
`quadranas argv...` in a folder, its output in `stdout` and `stderr` there, after executing the
prelude; the answer is the process id. `"ends": {"stdout": "closed"}` replaces a stream: it is
closed, `full` like a disk, or a `pipe` that nobody reads. `{"wait": pid}` is answered with the
exit code, negative for a signal. `tests/command_line.py` is the client.
"""

import json
import os
import sys
import traceback
from typing import Any

# Imported before the fork; nothing here computes, so no thread has to survive it.
import kornia.augmentation
import onnx
import scipy.optimize
import sklearn.datasets
import torch._dynamo  # the optimisers want it
import torch.utils.tensorboard

import quadranas.commands.convert
import quadranas.commands.derive
import quadranas.commands.predict
import quadranas.commands.search
import quadranas.commands.train
import quadranas.reports.run_report
from quadranas.cli.app import main

PRELOADED = (kornia, onnx, scipy, sklearn, torch, quadranas)


def replace(name: str, end: str) -> None:
    """Have a standard stream end as a shell can have it."""
    descriptor = ("stdin", "stdout", "stderr").index(name)
    if end == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
    elif end == "pipe":
        reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(reader)
    else:
        os.close(descriptor)
        setattr(sys, name, None)  # as the interpreter does when it starts
        setattr(sys, f"__{name}__", None)


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
        for name, end in job["ends"].items():
            replace(name, end)
        sys.argv = ["quadranas", *job["argv"]]
        exec(job["prelude"], {})
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
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
