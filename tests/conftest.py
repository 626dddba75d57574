"""One thread a process: faster at these sizes, and the same bits every time."""

import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pydantic
import pytest
import torch
from filelock import FileLock

from smollm3 import data
from smollm3.chat import default_template
from smollm3.data.spec import Source
from smollm3.model import ModelConfig
from smollm3.tokenizer import Tokenizer
from smollm3.train import TrainJob
from smollm3.train.spec import Parallel, TrainStage

torch.set_num_threads(1)
# A busy machine makes any example slow, and any strategy. The same examples in every run, so that no
# change fails by the luck of the draw; `make test-all` draws new ones.
hypothesis.settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=not os.environ.get("SMOLLM3_NEW_EXAMPLES"),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("any machine")

TEMPLATE = default_template()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer of 292 entries with our chat template: bytes, control tokens, a few merges."""
    return Tokenizer.train(["the model that answers the question, été 日本"] * 4, 292, TEMPLATE)


@pytest.fixture(scope="session")
def make_job(tokenizer, tmp_path_factory):
    """make_job(work, **stage) -> TrainJob of a tiny model on text, conversations or pairs."""
    folder = tmp_path_factory.mktemp("prepared")
    tokenizer.save(folder / "tokenizer")
    adapter = pydantic.TypeAdapter(Source)
    formats = {"web": "text", "maths": "text", "chat": "chat", "pairs": "preference"}
    shards = {}

    def shard(name: str) -> str:
        if name not in shards:
            source = adapter.validate_python(
                {"kind": "procedural", "generator": name, "documents": 40, "format": formats[name]}
            )
            shards[name] = str(data.prepare(name, source, tokenizer, folder, seed=0).folder)
        return shards[name]

    def make(
        work,
        *,
        seed=0,
        parent=None,
        moments=None,
        start=None,
        parallel=None,
        states=None,
        **stage,
    ) -> TrainJob:
        defaults = {
            "kind": "train",
            "mixture": {"web": 2, "maths": 1},
            "context": 32,
            "batch": 4,
            "lr": {"peak": 3e-3, "warmup": 2},
        }
        spec = TrainStage.model_validate(defaults | ({"steps": 6} | stage))
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size,
            layers=2,
            hidden=16,
            heads=4,
            kv_heads=2,
            head_dim=4,
            ffn=24,
            uses_rope=(True, False),
            rope_theta=10_000.0,
            context=max(spec.context, 32),
        )
        return TrainJob(
            stage=spec,
            parent=parent,
            model=config,
            tokenizer=str(folder / "tokenizer"),
            shards={name: shard(name) for name in spec.mixture},
            start=start or {},
            optimizer=moments,
            work=str(work),
            seed=seed,
            parallel=Parallel(**parallel or {}),
            states=states,
        )

    return make


@pytest.fixture(scope="session")
def smollm3_tokenizer(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with the exact SmolLM3 tokenizer; it takes some seconds to build, once for all
    workers of pytest-xdist."""
    if find_spec("llama_models") is None:  # not importorskip: it would be imported
        pytest.skip("its vocabulary comes from the package llama-models")
    from smollm3.tokenizer.build import build

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "smollm3-tokenizer"
    with FileLock(f"{folder}.lock"):
        if not (folder / "chat_template.jinja").exists():  # written last
            build(folder)
    return folder


@pytest.fixture(scope="session")
def exact_tokenizer(smollm3_tokenizer: Path) -> Tokenizer:
    return Tokenizer.load(smollm3_tokenizer)
