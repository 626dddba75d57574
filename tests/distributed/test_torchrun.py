"""Under torchrun the first process leads and the others follow; the result is that of a laptop."""

import os
import subprocess
import sys

import pytest
from tests.e2e.conftest import smoke  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("smoke")]


def test_torchrun_gives_the_weights_of_two_local_processes(smoke, tmp_path):  # noqa: F811
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
         "-m", "smollm3", "run", "smoke", "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for stage in ("stage1", "apo", "final"):
        name = f"{stage}/model.safetensors"
        assert (tmp_path / "run" / name).read_bytes() == (smoke / name).read_bytes()
