"""Runs TVM's RPC servers and trackers in forked processes: one import of TVM serves them all.

Reads one JSON object a line. `{"start": "server", ...}` or `{"start": "tracker", ...}` starts one
in a session of its own, with the arguments of TVM's class for it; the answer is the process id.
`{"wait": pid}` is answered when that process has ended. `tests/backends/rpc_boards.py` is the
client. It imports nothing but TVM, so that an emulated board can run it.
"""

import json
import os
import sys
from typing import Any

from tvm.rpc.server import PopenRPCServerState


def serve(start: str, tracker: list[Any] | None = None, **options: Any) -> None:
    """Become what `python -m tvm.exec.rpc_server` or `rpc_tracker` starts; never returns."""
    try:
        os.setsid()
        for number in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if start == "server":
            address = tuple(tracker) if tracker is not None else None
            PopenRPCServerState(tracker_addr=address, **options).thread.join()
        else:
            from tvm.rpc.tracker import PopenTrackerServerState  # a board lacks its packages

            PopenTrackerServerState(**options).thread.join()
    finally:
        os._exit(1)


def main() -> None:
    """Answer until the client hangs up."""
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer, _ = os.waitpid(job["wait"], 0)
        else:
            answer = os.fork()
            if answer == 0:
                serve(**job)
        os.write(1, f"{answer}\n".encode())


if __name__ == "__main__":
    main()
