"""The model, its folders and its sampler against transformers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from smollm3.checkpoint import load_model, load_tokenizer, save_model
from smollm3.checkpoint.hf import published_name
from smollm3.infer import Engine, SamplingParams, TorchBackend
from smollm3.infer.sampler import least_kept
from smollm3.model import ModelConfig, Transformer, Yarn, nope_pattern, packed, rope_tables

VOCAB = 300
few = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def configs(draw) -> ModelConfig:
    layers = draw(st.integers(1, 5))
    kv_heads, groups = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    head_dim = draw(st.sampled_from([4, 8, 16]))
    nope_every = draw(st.sampled_from([0, 1, 2, 3, 4, None]))
    explicit = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
    yarn = draw(st.sampled_from([None, Yarn(2.0, 32), Yarn(4.0, 16), Yarn(8.0, 8, 16.0, 2.0)]))
    return ModelConfig(
        vocab_size=VOCAB,
        layers=layers,
        hidden=draw(st.sampled_from([kv_heads * groups * head_dim, 24])),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=draw(st.integers(5, 40)),
        uses_rope=tuple(explicit) if nope_every is None else nope_pattern(layers, nope_every),
        rope_theta=draw(st.sampled_from([100.0, 50_000.0, 5e6])),
        context=64,
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        init_std=0.25,  # far from flat: differences show
        tied=draw(st.booleans()),
        yarn=yarn,
    )


def ours(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.linspace(0.5, 1.5, len(weight)))
            elif not config.tied and name == "unembed.weight":
                weight.mul_(0.5)
    return model


def theirs(folder: Path) -> SmolLM3ForCausalLM:
    """Loaded as users load it; nothing may be missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert type(model) is SmolLM3ForCausalLM
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@few
@given(config=configs(), seed=st.integers(0, 99))
def test_logits_loss_and_gradients(tmp_path_factory, tokenizer, config, seed):
    folder = tmp_path_factory.mktemp("model")
    mine = ours(config, seed)
    save_model(mine, tokenizer, folder)
    other = theirs(folder)
    # 0..273 leaves out the padding token, whose embedding row transformers does not train
    ids = torch.randint(274, (2, 40), generator=torch.Generator().manual_seed(seed))
    logits = mine(ids)
    result = other(ids, labels=ids)
    close(logits, result.logits)

    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, result.loss, atol=1e-5, rtol=0)
    loss.backward()
    result.loss.backward()
    expected = dict(other.named_parameters())
    for name, weight in mine.named_parameters():
        grad = expected[published_name(name)].grad
        # Of the whole: single elements are sums in another order.
        assert (weight.grad - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name


@few
@given(
    config=configs(),
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=5),
)
def test_packed_rows(tmp_path_factory, tokenizer, config, lengths):
    """Intra-document masking and restarting positions are transformers' block mask."""
    folder = tmp_path_factory.mktemp("model")
    mine = ours(config)
    save_model(mine, tokenizer, folder)
    other = theirs(folder)
    documents = torch.tensor([[i for i, n in enumerate(lengths) for _ in range(n)]])
    positions = torch.tensor([[p for n in lengths for p in range(n)]])
    T = documents.shape[1]
    ids = torch.randint(VOCAB, (1, T), generator=torch.Generator().manual_seed(T))

    same = (documents[:, :, None] == documents[:, None]) & torch.ones(T, T).tril().bool()
    mask = torch.zeros(1, 1, T, T).masked_fill(~same[:, None], torch.finfo(torch.float32).min)
    expected = other(ids, attention_mask=mask, position_ids=positions).logits
    close(mine(ids, rope_tables(config, positions), packed(documents)), expected)


@few
@given(config=configs(), seed=st.integers(0, 99))
def test_greedy_answers(tmp_path_factory, tokenizer, config, seed):
    """Token for token, to where the two likeliest are closer than 1e-4; a batch of two lengths
    here, one by one there."""
    folder = tmp_path_factory.mktemp("model")
    save_model(ours(config, seed), tokenizer, folder)
    other = theirs(folder)
    engine = Engine(TorchBackend(load_model(folder)), load_tokenizer(folder))
    prompts = [[seed, 3, 200, 7], [seed + 100, 5, 5, 150, 9, 9, seed]]
    answers = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=30))
    for prompt, mine in zip(prompts, answers, strict=True):
        expected = other.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=30,
            eos_token_id=list(engine.stop_ids),  # ours also stops at the end of a document
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = expected.sequences[0, len(prompt) :].tolist()
        top_T2 = torch.cat(expected.logits).topk(2).values
        unsure = (top_T2[:, 0] - top_T2[:, 1] <= 1e-4).nonzero()
        if len(unsure):
            sure = int(unsure[0])
            assert mine.ids[:sure] == tokens[:sure]
        else:
            assert mine.ids == tokens


@few
@given(config=configs(), seed=st.integers(0, 99))
def test_bfloat16_logits(tmp_path_factory, tokenizer, config, seed):
    """As near to one of transformers' ways to attend as they are to each other."""
    folder = tmp_path_factory.mktemp("model")
    save_model(ours(replace(config, init_std=0.1), seed), tokenizer, folder, dtype="bfloat16")
    ids = torch.randint(274, (3, 60), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        mine = load_model(folder, dtype="bfloat16")(ids)
        eager, sdpa = (
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kind)(ids).logits
            for kind in ("eager", "sdpa")
        )
    assert mine.dtype == eager.dtype == torch.bfloat16
    assert min(distance(mine, eager), distance(mine, sdpa)) <= distance(eager, sdpa)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "rope", [
        {"rope_type": "default", "rope_theta": 12345.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64,
         "rope_theta": 5e5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("no_rope_layers", [None, [1, 0, 0, 1, 1]])
def test_their_smollm3_folder_loads_here(tmp_path, tied, rope, no_rope_layers):
    torch.manual_seed(0)
    other = SmolLM3ForCausalLM(
        SmolLM3Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.25,
            tie_word_embeddings=tied,
            no_rope_layers=no_rope_layers,
            rope_parameters=rope,
            pad_token_id=None,
        )
    )
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    mine = load_model(tmp_path)
    assert mine.config.uses_rope == tuple(map(bool, no_rope_layers or [1, 1, 1, 0, 1]))
    ids = torch.randint(VOCAB, (2, 50), generator=torch.Generator().manual_seed(0))
    close(mine(ids), other(ids).logits)


@pytest.mark.parametrize("head_dim", [None, 16])
def test_llama(tmp_path, tokenizer, head_dim):
    """A Llama loads here, and what we save of it is a SmolLM3 without NoPE layers."""
    torch.manual_seed(0)
    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head_dim,
            initializer_range=0.25,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        )
    )
    other.save_pretrained(tmp_path / "llama")
    mine = load_model(tmp_path / "llama")
    assert all(mine.config.uses_rope)
    ids = torch.randint(VOCAB, (2, 50), generator=torch.Generator().manual_seed(0))
    close(mine(ids), other(ids).logits)
    save_model(mine, tokenizer, tmp_path / "ours")
    close(theirs(tmp_path / "ours")(ids).logits, other(ids).logits)


def test_bfloat16_folder(tmp_path, tokenizer):
    config = ModelConfig(
        VOCAB, 4, 32, 4, 2, 8, 48, nope_pattern(4, 4), rope_theta=5e4, context=64, init_std=0.1
    )
    save_model(ours(config), tokenizer, tmp_path, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16  # what config.json says is what is taken
    ids = torch.arange(40)[None]
    close(load_model(tmp_path)(ids), model.float()(ids).logits)


def test_tokenizer_and_stop_tokens_of_a_saved_folder(tmp_path, tokenizer):
    config = ModelConfig(
        VOCAB, 2, 16, 2, 1, 8, 24, nope_pattern(2, 2), rope_theta=1e4, context=512, init_std=0.5
    )
    model = ours(config)
    save_model(model, tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).template == tokenizer.template
    other = theirs(tmp_path)
    assert other.generation_config.eos_token_id == list(tokenizer.stop_ids)
    assert other.generation_config.bos_token_id is None
    assert other.config.bos_token_id is None
    assert (other.generation_config.do_sample, other.generation_config.top_p) == (True, 0.95)
    text = "été, the model <b>answers</b> 日本"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text)
    assert "transformers_version" not in json.loads((tmp_path / "config.json").read_text())

    # greedy answers agree, from the first token to the one that ends them
    engine = Engine(TorchBackend(load_model(tmp_path)), load_tokenizer(tmp_path))
    for start in range(5):
        prompt = [start, start + 60, start * 7]
        answer = other.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, 3, dtype=torch.long),
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=20,
        )
        [mine] = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=20))
        assert mine.ids == answer[0, 3:].tolist()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 7, 60]),
    top_p=st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.4]),
)
def test_filters_keep_the_same_tokens(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(1, 200, generator=torch.Generator().manual_seed(seed))
    probs = (logits / temperature).softmax(-1)
    weights = (probs / probs.max())[0].numpy()
    settings = SamplingParams(temperature, top_k, top_p, min_p)
    kept = torch.from_numpy(weights >= least_kept(weights, float(weights.sum()), settings))[None]
    expected = TemperatureLogitsWarper(temperature)(None, logits.clone())
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    if top_p == 1 or not near(probs, top_k, top_p):
        assert torch.equal(kept, expected.isfinite())


def near(probs, top_k, top_p) -> bool:
    """A sum lands on top_p within rounding: the last token may fall on either side."""
    top = probs[0].double().sort(descending=True).values[: top_k or None]
    return bool(((top / top.sum()).cumsum(0) - top_p).abs().min() < 1e-6)
