"""Which engine a model gets, and what cannot be had."""

from dataclasses import replace

import pytest
import torch
from tests.unit.test_infer_torch import CONFIG, model

from smollm3.checkpoint import save_model
from smollm3.errors import UserError
from smollm3.infer import load, load_engine


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(model(vocab_size=300), tokenizer, folder)
    return folder


def test_without_kernels_it_is_pytorch_and_says_so_once(folder, monkeypatch, caplog):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    load._say_once.cache_clear()
    for _ in range(2):
        with load_engine(folder, device="cpu") as engine:
            assert (engine.backend.name, engine.backend.kv_cache_dtype) == ("torch", "float32")
            assert engine.config == replace(CONFIG, vocab_size=300)
    assert [record.message for record in caplog.records] == [load.MISSING]
    with pytest.raises(UserError, match="the CPU kernels are not installed"):
        load_engine(folder, engine="native")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"engine": "fast"}, "engine: 'fast' is not one of auto, native, torch, mlx"),
        ({"engine": "torch", "kv_cache_dtype": "int8"}, "kv_cache_dtype: PyTorch"),
        ({"engine": "torch", "dtype": "int8"}, "dtype: 'int8' is not one of"),
        ({"engine": "torch", "quantize": "int4"}, "quantize: int4 runs on CUDA"),
        ({"engine": "torch", "device": "abc"}, "device: 'abc' is not one of cpu, cuda, mps"),
        ({"device": "meta"}, "device: 'meta' is not one of"),
        ({"device": "cuda:77"}, "device: cuda:77: PyTorch finds none here"),
    ],
)
def test_what_cannot_be_had(folder, monkeypatch, options, problem):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=problem):
        load_engine(folder, **{"device": "cpu"} | options)


def test_threads_and_dtypes_of_pytorch(folder):
    before = torch.get_num_threads()
    try:
        with load_engine(folder, "bfloat16", "cpu", engine="torch", threads=2) as engine:
            assert torch.get_num_threads() == 2
            assert engine.backend.kv_cache_dtype == "bfloat16"
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_another_model(folder, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao")
    text = [(7 * i) % 270 for i in range(70)]
    with load_engine(folder, device="cpu", engine="torch", quantize="int8") as engine:
        engine.save_prefix(text, tmp_path / "p")
    with (
        load_engine(folder, device="cpu", engine="torch") as engine,
        pytest.raises(UserError, match="saved with another model"),
    ):
        engine.load_prefix(tmp_path / "p")


def test_a_gpu_is_taken_where_there_is_one(folder, monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(load, "_torch", lambda *args: taken.append(args[1:3]) or 1 / 0)
    for options in ({}, {"device": "cpu", "engine": "torch"}, {"device": "mps"}):
        with pytest.raises(ZeroDivisionError):
            load_engine(folder, **options)
    assert [(dtype, str(device)) for dtype, device in taken] == [
        ("float16", "cuda"), ("float32", "cpu"), ("bfloat16", "mps"),
    ]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert load._own_dtype(torch.device("cuda")) == "bfloat16"
