"""One thread a process: faster at these sizes, and the same bits every time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from smollm3.chat import default_template
from smollm3.tokenizer import Tokenizer

torch.set_num_threads(1)

TEMPLATE = default_template()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer of 292 entries with our chat template: bytes, control tokens, a few merges."""
    return Tokenizer.train(["the model that answers the question, été 日本"] * 4, 292, TEMPLATE)
