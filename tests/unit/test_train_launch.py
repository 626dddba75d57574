"""How a run was started: torchrun, srun, or as a program of its own."""

import subprocess

import pytest

from smollm3.errors import UserError
from smollm3.train.launch import adopt_slurm, check_launch

SRUN = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234567",
}


def test_local_processes_beside_gpus_are_refused():
    with pytest.raises(UserError, match="torchrun --nproc-per-node 4"):
        check_launch(8, {}, lambda: 4)
    check_launch(8, {}, lambda: 0)
    check_launch(1, {}, lambda: 4)
    check_launch(8, {"WORLD_SIZE": "8"}, lambda: 8)


def test_a_task_of_srun_is_a_rank():
    environment = dict(SRUN)
    adopt_slurm(environment, lambda nodes: {"gpu[03-04]": "gpu03"}[nodes])
    del environment["SLURM_STEP_NUM_TASKS"]
    assert {key: environment[key] for key in environment if not key.startswith("SLURM")} == {
        "WORLD_SIZE": "16",
        "RANK": "9",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": str(10_000 + 1234567 % 50_000),
    }


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        SRUN | {"WORLD_SIZE": "16"},  # torchrun within srun
        # A batch script, outside srun, has the job's variables but no step's.
        {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"},
    ],
)
def test_nothing_else_is(environment):
    before = dict(environment)
    adopt_slurm(environment, lambda nodes: pytest.fail("asked"))
    assert environment == before


@pytest.mark.parametrize(
    "error", [FileNotFoundError("scontrol"), subprocess.CalledProcessError(1, "scontrol")]
)
def test_a_first_node_without_a_name_is_one_line(error):
    def first(nodes):
        raise error

    with pytest.raises(UserError, match="16 tasks.*torchrun"):
        adopt_slurm(dict(SRUN), first)


def test_a_master_that_is_given_stays():
    environment = SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    adopt_slurm(environment, lambda nodes: "gpu03")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "29500")
