"""What makes PyTorch fast on CUDA. Steps of fixed size are the plain ones: tested on any machine,
with a stand-in for the capture; the capture itself where there is a GPU."""

import random
import sys
from dataclasses import replace

import pytest
import torch
from tests.unit.test_infer_torch import CONFIG, model, step

from smollm3.bench.shapes import SHAPES
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams
from smollm3.infer.backends import BLOCK
from smollm3.infer.backends import cuda as cuda_module
from smollm3.infer.backends.cuda import Graphs, quantize
from smollm3.infer.backends.torch import TorchBackend
from smollm3.model import Transformer

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CPU = torch.device("cpu")


def graphs(backend) -> tuple[Graphs, list]:
    """With a capture that runs the same again on the same inputs; the sizes that were captured."""
    made = []

    def capture(run, inputs):
        made.append((inputs.ids_1S.shape[1], inputs.tables_SW.shape[1]))
        return lambda: run(inputs)

    return Graphs(CONFIG, CPU, backend.decode, backend.blocks, capture), made


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_steps_of_fixed_size_are_the_plain_ones(rows):
    plain, padded = (TorchBackend(model(), blocks=60) for _ in range(2))
    padded._graphs, made = graphs(padded)
    draw = random.Random(rows)
    lengths = [draw.randint(1, 150) for _ in range(rows)]
    free = iter(draw.sample(range(60), 60))
    tables = [[next(free) for _ in range(-(-(n + 3) // BLOCK))] for n in lengths]
    texts = [[draw.randrange(120) for _ in range(n + 3)] for n in lengths]
    prompts = [(0, ids[:n]) for ids, n in zip(texts, lengths, strict=True)]
    for backend in (plain, padded):
        step(backend, prompts, tables, [])
    if min(lengths) > 1:
        assert made == []
    for new in range(3):
        parts = [(n + new, [ids[n + new]]) for ids, n in zip(texts, lengths, strict=True)]
        found, expected = (step(backend, parts, tables) for backend in (padded, plain))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    blocks = 1 << (max(map(len, tables)) - 1).bit_length()
    assert made == [({1: 1, 3: 4, 4: 4, 9: 16}[rows], blocks)]  # once
    for pool, other in ((plain.k_LPGD, padded.k_LPGD), (plain.v_LPGD, padded.v_LPGD)):
        used = slice(0, plain.blocks * BLOCK)  # padding touches no block of the engine's
        torch.testing.assert_close(pool[:, used], other[:, used], atol=2e-5, rtol=1e-5)


def test_other_steps_are_not_of_fixed_size(monkeypatch):
    backend = TorchBackend(model(), blocks=20)
    backend._graphs, made = graphs(backend)
    step(backend, [(0, [1, 2])], [[0]])  # a prompt
    step(backend, [(0, [1]), (0, [2])], [[0], [1]], [1])  # not all logits are wanted
    monkeypatch.setattr(cuda_module, "ROWS", (1, 2))
    step(backend, [(0, [i]) for i in range(3)], [[0], [1], [2]])
    assert made == []
    step(backend, [(0, [1]), (0, [2])], [[0], [1]])
    assert made == [(2, 1)]


def test_an_engine_of_graphs(tokenizer):
    """Rows join and leave, and each size is captured once."""
    wide = model(vocab_size=300)
    plain, padded = TorchBackend(wide), TorchBackend(wide)
    padded._graphs, made = graphs(padded)
    asked = [[(7 * i + j) % 270 for i in range(3 * j + 1)] for j in range(9)]
    params = [SamplingParams(temperature=0, max_tokens=3 + 5 * (j % 3)) for j in range(9)]
    with Engine(plain, tokenizer) as one, Engine(padded, tokenizer) as other:
        found, expected = (engine.generate(asked, params) for engine in (other, one))
    assert [answer.ids for answer in found] == [answer.ids for answer in expected]
    assert len(made) == len(set(made)) > 2


# quantised weights


@pytest.mark.filterwarnings("ignore")
def test_eight_bits():
    pytest.importorskip("torchao", reason="needs torchao")
    reference, narrow = model(torch.bfloat16), model(torch.bfloat16)
    narrow = quantize(narrow, "int8", CPU)
    assert type(narrow.blocks[0].ffn.up.weight.data) is not torch.Tensor
    assert narrow.unembed.weight is narrow.embed.weight
    ids = [(5 * i) % 120 for i in range(40)]
    with torch.no_grad():
        expected = reference(torch.tensor([ids]))[0].float()
    found = step(TorchBackend(narrow, blocks=4), [(0, ids)], [[0, 1]])
    assert 0 < (found - expected).abs().mean() / expected.abs().mean() < 0.1


@pytest.mark.parametrize(
    ("kind", "dtype", "problem"),
    [
        ("int3", torch.float32, "'int3' is not one of int4, int8"),
        ("int4", torch.bfloat16, "int4 runs on CUDA, from Ampere on, in bfloat16, not on cpu in b"),
    ],
)
def test_what_cannot_be_quantised(kind, dtype, problem):
    with pytest.raises(UserError, match=f"quantize: {problem}"):
        quantize(model(dtype), kind, CPU)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.bfloat16), ((8, 0), torch.half)])
def test_int4_is_not_for_every_gpu(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(UserError, match="int4 runs on CUDA, from Ampere on, in bfloat16, not on c"):
        quantize(model(dtype), "int4", torch.device("cuda"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "weights"), [(None, 6.15e9), ("int8", 3.34e9), ("int4", 2.12e9)])
def test_the_3b_with_8k_of_context_takes_less_than_8_gb(monkeypatch, kind, weights):
    """By the sizes of all tensors; what a step takes for itself is far less than what is left."""
    pytest.importorskip("torchao", reason="needs torchao")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))  # asks torchao
    config = replace(SHAPES["smollm3-3b"], context=8192)
    with torch.device("meta"):
        big = Transformer(config).to(torch.bfloat16)
    if kind:
        big = cuda_module._narrowed(big, kind, torch.device("meta"))
    backend = TorchBackend(big, blocks=8192 // BLOCK)
    taken = sum(map(size, big.parameters()))
    assert taken == pytest.approx(weights, rel=0.01)
    assert taken + backend.k_LPGD.nbytes + backend.v_LPGD.nbytes < 7e9


def size(weight) -> int:
    """Bytes of a tensor, or of those that a quantised one is made of."""
    parts = getattr(weight, "tensor_data_names", None)
    return sum(getattr(weight, name).nbytes for name in parts) if parts else weight.nbytes


def test_without_torchao(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="pip install torchao"):
        quantize(model(), "int8", CPU)


# where there is a GPU


@gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graphs_on_a_gpu(tokenizer, dtype):
    wide = model(dtype, vocab_size=300, head_dim=32).to("cuda")
    asked = [[(7 * i + j) % 270 for i in range(20 * j + 1)] for j in range(5)]
    greedy = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, logprobs=2)
    backend, plain = TorchBackend(wide, blocks=60), TorchBackend(wide, blocks=60)
    plain._graphs = None
    with Engine(backend, tokenizer) as one, Engine(plain, tokenizer) as other:
        for a, b in zip(one.generate(asked, greedy), other.generate(asked, greedy), strict=True):
            assert a.ids[0] == b.ids[0]
            assert a.logprobs[0] == pytest.approx(b.logprobs[0], abs=0.05)
    assert backend._graphs._graphs


@gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_quantised_on_a_gpu(tokenizer, kind):
    pytest.importorskip("torchao", reason="needs torchao")
    wide = model(torch.bfloat16, vocab_size=300, hidden=256, ffn=512, head_dim=32)
    ids = [(5 * i) % 270 for i in range(60)]
    with torch.no_grad():
        expected = wide(torch.tensor([ids]))[0].float()
    backend = TorchBackend(quantize(wide, kind, torch.device("cuda")), blocks=20)
    found = step(backend, [(0, ids)], [[0, 1]]).cpu()
    assert (found - expected).abs().mean() / expected.abs().mean() < 0.5
    with Engine(backend, tokenizer) as engine:
        assert len(engine.generate([[1, 2]], SamplingParams(max_tokens=5))[0].ids) <= 5


@gpu
@pytest.mark.slow
def test_the_3b_with_8k_of_context_fits_8_gb():
    """Random weights of the 3B's shape, in 4 bits: memory at its highest."""
    pytest.importorskip("torchao", reason="needs torchao")
    big = Transformer(replace(SHAPES["smollm3-3b"], context=8192)).to(torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    backend = TorchBackend(quantize(big, "int4", torch.device("cuda")), blocks=8192 // BLOCK)
    step(backend, [(0, [1] * 512)], [list(range(16))], [511])
    step(backend, [(8000, [1])], [list(range(256))])
    assert torch.cuda.max_memory_allocated() < 8e9
