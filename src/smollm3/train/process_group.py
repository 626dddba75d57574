"""The processes of a data-parallel run and what they send to each other.

Every rank holds the whole model and takes its share of each batch; one all-reduce a step keeps
them equal.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from smollm3.errors import TryAgain, first_line
from smollm3.train.preflight import preflight

# Between jobs workers wait while the main process prepares data or evaluates.
BETWEEN_JOBS = timedelta(days=7)
# Within a job. A rank that dies closes its connection, which ends the others' waiting at once; this
# is for one that hangs.
TIMEOUT_VARIABLE, TIMEOUT_SECONDS = "SMOLLM3_TIMEOUT", 600.0


def default_device() -> torch.device:
    """This process's GPU (LOCAL_RANK's under torchrun), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@dataclass(frozen=True)
class ProcessGroup:
    """rank 0 is the main process: it alone writes files. `workers`: those that it has started."""

    rank: int
    size: int
    device: torch.device
    workers: Sequence[subprocess.Popen[str]] = ()
    between_jobs: dist.ProcessGroup | None = None

    @staticmethod
    def single() -> ProcessGroup:
        return ProcessGroup(0, 1, default_device())

    @staticmethod
    def join(
        rank: int, size: int, init_file: Path, workers: Sequence[subprocess.Popen[str]] = ()
    ) -> ProcessGroup:
        """Meet `size` processes of this machine through the new file `init_file`; CPU, gloo."""
        # Else gloo looks the host's name up, which fails on machines without a network.
        for _, interface in socket.if_nameindex():
            if interface in ("lo", "lo0"):  # Linux, macOS
                os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        store = dist.FileStore(str(init_file.resolve()), size)  # type: ignore[attr-defined]
        store.set_timeout(BETWEEN_JOBS)
        timeout = _timeout()
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
        return ProcessGroup(rank, size, torch.device("cpu"), workers, _waiting_group())

    @staticmethod
    def from_environment() -> ProcessGroup:
        """The processes that torchrun has started (RANK, WORLD_SIZE, MASTER_ADDR): NCCL or gloo."""
        device = default_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_timeout())
        rank, size = dist.get_rank(), dist.get_world_size()
        if device.type == "cuda" and size > 1:
            lines = preflight(rank, size, device)
            if rank == 0:
                for line in lines:
                    logging.getLogger(__name__).warning(line)
        return ProcessGroup(rank, size, device, between_jobs=_waiting_group())

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def all_reduce_(self, tensor: Tensor) -> None:
        """Sum `tensor` over all ranks, in place; every rank gets the same bits."""
        if self.size > 1:
            with self._reporting_deaths():
                dist.all_reduce(tensor)

    def broadcast_text(self, text: str = "") -> str:
        """The main process's `text`, on every rank."""
        if self.size == 1:
            return text
        with self._reporting_deaths():
            data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else None
            length = torch.tensor(0 if data is None else len(data))
            dist.broadcast(length, 0, group=self.between_jobs)
            if not length:
                return ""
            if data is None:
                data = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0, group=self.between_jobs)
            return bytes(data.tolist()).decode()

    def destroy(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()

    @contextmanager
    def _reporting_deaths(self) -> Iterator[None]:
        """One clear error where another rank is gone; gloo's own names only a socket."""
        try:
            yield
        except RuntimeError as e:
            raise TryAgain(f"{self._death(e)}; run again to resume from the last checkpoint") from e

    def _death(self, error: RuntimeError) -> str:
        deadline = time.monotonic() + 5.0  # the connection can close before the process is gone
        while self.workers and time.monotonic() < deadline:
            for rank, process in enumerate(self.workers, start=1):
                if process.poll() is not None:
                    return f"training process {rank + 1} of {self.size} {ending(process)}"
            time.sleep(0.05)
        if "imed out" in str(error) or "imeout" in str(error):
            return self._hanging()
        return f"lost contact with another training process ({first_line(error)})"

    def _hanging(self) -> str:
        """Which ranks do not answer; the main process knows, by asking all of them."""
        seconds = f"{_timeout().total_seconds():.0f} s"
        try:
            dist.monitored_barrier(self.between_jobs, timedelta(seconds=15), wait_all_ranks=True)
        except RuntimeError as e:
            silent = re.search(r"[Rr]anks? ([\d, ]+) failed", str(e))
            if silent:
                return f"rank {silent[1].strip(' ,')} did not answer for {seconds}"
        return f"a rank did not answer for {seconds} ({TIMEOUT_VARIABLE})"


def _timeout() -> timedelta:
    return timedelta(seconds=float(os.environ.get(TIMEOUT_VARIABLE) or TIMEOUT_SECONDS))


def _waiting_group() -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=BETWEEN_JOBS)
    return group


def ending(process: subprocess.Popen[str]) -> str:
    """How a process ended, in words."""
    code = process.wait()
    if code < 0:
        return f"was killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return f"ended with code {code}"
