"""The program of a training worker: `python -m smollm3.train.worker INIT_FILE RANK SIZE`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from smollm3.errors import UserError
from smollm3.train.process_group import ProcessGroup
from smollm3.train.worker_group import READY, run_worker


def main() -> None:
    # The main process alone decides when to stop; it tells its workers within a step's all-reduce.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_main_process, daemon=True).start()
    init_file, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(READY, flush=True)
    os.dup2(2, 1)  # nobody reads the pipe from here on
    try:
        run_worker(ProcessGroup.join(rank, size, init_file))
    except UserError:
        sys.exit(1)  # the main process is gone, or reports it


def _end_with_main_process() -> None:
    """The main process writes nothing here: the read ends when its end of the pipe is closed."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
