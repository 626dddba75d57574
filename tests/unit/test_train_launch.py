"""How a run is started: what cannot work is refused in one line that says what would."""

import pytest

from smollm3.errors import UserError
from smollm3.train.launch import check_launch


def test_processes_on_a_machine_with_gpus_are_refused():
    with pytest.raises(UserError, match="has 4 GPUs; start `torchrun --nproc-per-node 4"):
        check_launch(8, {}, lambda: 4)
    check_launch(8, {}, lambda: 0)
    check_launch(1, {}, lambda: 4)


def test_srun_without_a_launcher_is_refused():
    with pytest.raises(UserError, match="srun started 8 copies.*torchrun.*--slurm"):
        check_launch(1, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, lambda: 0)
    check_launch(1, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, lambda: 0)


def test_under_torchrun_all_is_well():
    check_launch(8, {"WORLD_SIZE": "8", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, lambda: 8)
