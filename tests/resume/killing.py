"""A small server: imports everything once, then trains in forked children and kills them at given moments.

Reads one JSON request a line from standard input: {"config": …, "kills": [[images, seconds], …], "slow": seconds}. Each
kill is SIGKILL so many seconds after the checkpoint of so many images appeared (counting by images makes the test as
sharp on a busy machine); the last child runs to its end. Answers one JSON line: the exit codes.
``slow`` makes every flush to the disk take that long, so that most kills fall inside the writing of a checkpoint.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # imported by every optimizer, which takes seconds: once here, for all children

from ornstein.training import read_config, train


def child(config: dict, slow: float) -> None:
    status = 1
    try:
        torch.set_num_threads(1)
        if slow:
            true = os.fsync
            os.fsync = lambda handle: (time.sleep(slow), true(handle))[1]
        train(read_config(config), quiet=True)
        status = 0
    finally:
        os._exit(status)


def newest(out: Path) -> int:
    """Images of the newest checkpoint."""
    return max((int(p.name) for p in (out / "checkpoints").glob("0*")), default=0)


def exited(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        codes = []
        for kill in [*request["kills"], None]:
            pid = os.fork()
            if pid == 0:
                child(request["config"], request.get("slow", 0.0))
            if kill is not None:
                images, delay = kill
                while newest(Path(request["config"]["out"])) < images and not exited(pid):
                    time.sleep(0.002)
                time.sleep(delay)
                os.kill(
                    pid, signal.SIGKILL
                )  # a child that has exited is still there to be killed until it is waited for
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
