"""A real model under constraints, with and without guesses: the same valid answers."""

import datetime
import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch

from smollm3.checkpoint import load_model, load_tokenizer, locate
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, TorchBackend
from smollm3.infer.constrain.masks import Choice, Grammar, Json, Regex, Tools
from smollm3.infer.speculation import DraftModel, PromptLookup, StepCosts
from smollm3.infer.worker import Worker
from smollm3.model import ModelConfig, Transformer, nope_pattern

TODAY = datetime.date(2025, 7, 8)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {
            "type": "array",
            "items": {"enum": ["red", "green", "blue"]},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Write a JSON object about Ann Lee: name, age, colours."}]
GREEDY = SamplingParams(temperature=0, max_tokens=60)
DRAWN = SamplingParams(temperature=1.2, max_tokens=60, seed=1)


@pytest.fixture(scope="module")
def real():
    """smollm2-135m: model and tokenizer."""
    folder = locate("smollm2-135m")
    return load_model(folder, "float32"), load_tokenizer(folder)


@pytest.fixture(scope="module")
def engine(real):
    with Engine(TorchBackend(real[0], blocks=128), real[1]) as engine:
        yield engine


@pytest.fixture(scope="module", params=["lookup", pytest.param("draft", marks=pytest.mark.slow)])
def guessing(request, real):
    """The same engine with guesses; as a draft model, the model itself is nearly always right."""
    model, tokenizer = real
    draft = DraftModel(TorchBackend(model, blocks=64), tokenizer, tokenizer)
    make = PromptLookup if request.param == "lookup" else draft.drafter
    with Engine(TorchBackend(model, blocks=128), tokenizer, drafter=make) as engine:
        yield engine


def answers(engine, constraint=None, ask=ASK):
    prompt = engine.tokenizer.render(ask, date=TODAY).ids
    asked = [engine.submit(prompt, params, constraint=constraint) for params in (GREEDY, DRAWN)]
    return [generation.result() for generation in asked]


@pytest.fixture(scope="module")
def plain(engine):
    return answers(engine, Json(SCHEMA))


def test_answers_are_valid(plain, engine):
    for answer in plain:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert len({answer.text for answer in plain}) == 2


def test_forced_tokens_take_no_steps_of_their_own(engine):
    before = engine.stats()
    engine.submit("Ann: ", GREEDY, constraint=Json(SCHEMA)).result()
    after = engine.stats()
    tokens = after.decode_tokens - before.decode_tokens
    assert after.steps - before.steps < 0.8 * tokens
    steps = list(engine.submit("Say: ", GREEDY, constraint=Choice(["Nothing else will do."])))
    assert [step.source for step in steps] == ["sampled"] + ["forced"] * (len(steps) - 1)


def test_guesses_change_nothing(plain, guessing):
    before = guessing.stats()
    for ours, theirs in zip(answers(guessing, Json(SCHEMA)), plain, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    after = guessing.stats()
    assert after.accepted_tokens > before.accepted_tokens


@pytest.mark.slow
def test_masks_made_beside_the_model_are_the_same(plain, real, monkeypatch):
    """As on a GPU."""
    idle = property(lambda worker: True, lambda worker, value: None)
    monkeypatch.setattr(Worker, "_cpu_is_idle", idle, raising=False)
    with Engine(TorchBackend(real[0], blocks=32), real[1]) as engine:
        prompt = engine.tokenizer.render(ASK, date=TODAY).ids
        answer = engine.submit(prompt, GREEDY, constraint=Json(SCHEMA)).result()
    assert answer.ids == plain[0].ids


def test_unconstrained_copies_are_the_same_and_take_fewer_steps(engine, guessing):
    text = '{"id": 17, "title": "The quick brown fox", "tags": ["fox", "dog"], "open": true}'
    ask = [{"role": "user", "content": f"Repeat this JSON exactly, twice:\n{text}\n{text}"}]
    prompt = engine.tokenizer.render(ask, date=TODAY).ids
    params = SamplingParams(temperature=0, max_tokens=40)
    plain = engine.submit(prompt, params).result()
    before = guessing.stats()
    assert guessing.submit(prompt, params).result().ids == plain.ids
    after = guessing.stats()
    assert after.steps - before.steps < 0.6 * len(plain.ids)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Regex(r"\d{4}-\d{2}"), r"\d{4}-\d{2}"),
        (Choice(["red", "green"]), "red|green"),
        (Grammar('start: ("1" | "2")+ "."'), r"[12]+\."),
    ],
)
def test_other_constraints(engine, constraint, pattern):
    params = SamplingParams(temperature=1, max_tokens=40, seed=5)
    answer = engine.submit("Answer: ", params, constraint=constraint).result()
    if answer.finish_reason == "stop":
        assert re.fullmatch(pattern, answer.text)
    else:
        assert set(answer.text) <= {"1", "2"}


def test_a_required_call_is_one(engine):
    tool = {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 7]}},
            "required": ["city", "days"],
        },
    }
    ask = [{"role": "user", "content": "What will the weather be in Paris?"}]
    tools = Tools([tool], "required", parallel=False)
    message = engine.chat(ask, params=GREEDY, constraint=tools, date=TODAY)
    [call] = message.tool_calls
    assert call.name == "weather"
    jsonschema.validate(call.arguments, tool["parameters"])
    assert message.content == ""


def test_a_failing_constraint_fails_its_request_alone(engine):
    with pytest.raises(UserError, match="schema"):
        engine.submit("x", constraint=Json({"type": "nonsense"}))
    words = Regex("|".join(f"x{i}.*a.{{30}}y" for i in range(50)) + "|(.*a.{30}){20}")
    params = SamplingParams(temperature=2.0, max_tokens=40, logit_bias={64: 9.0})
    heavy = engine.submit("x", params, constraint=words)
    assert engine.submit("Say: ", constraint=Choice(["no"])).result().text == "no"
    try:
        heavy.result()
    except UserError as e:
        assert "cannot go on" in str(e)


# a model of random weights, which says anything, over our template


@pytest.fixture(scope="module")
def noise(tokenizer):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 12,
        layers=2,
        hidden=16,
        heads=2,
        kv_heads=1,
        head_dim=8,
        ffn=24,
        uses_rope=nope_pattern(2, 4),
        rope_theta=10_000.0,
        context=2048,
    )
    model = Transformer(config)
    model.init_weights(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    with Engine(
        TorchBackend(model), tokenizer, drafter=lambda: PromptLookup(StepCosts(0, 0.01, False))
    ) as engine:
        yield engine


SMALL = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"enum": [1, 2]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("budget", [0, 3, 20])
def test_reasoning_ends_and_content_keeps_to_the_schema(noise, think, budget):
    seen = set()
    for seed in range(6):
        message = noise.chat(
            ASK,
            enable_thinking=think,
            params=SamplingParams(temperature=1, seed=seed, max_tokens=300),
            date=TODAY,
            constraint=Json(SMALL),
            thinking_budget=budget,
        )
        jsonschema.validate(json.loads(message.content), SMALL)
        seen.add(message.reasoning is None)
        if message.reasoning is not None:
            assert think
            assert budget
    assert seen == ({True} if not (think and budget) else seen)


@pytest.mark.parametrize("think", [True, False])
def test_calls_are_valid_after_whatever_text(noise, think):
    tool = {"name": "f", "parameters": SMALL}
    calls = 0
    for seed in range(8):
        message = noise.chat(
            ASK,
            tools=[tool],
            enable_thinking=think,
            params=SamplingParams(temperature=1, seed=seed, max_tokens=200, logit_bias={288: 3.0}),
            date=TODAY,
            constraint=Tools([tool]),
            thinking_budget=10,
        )
        for call in message.tool_calls:
            if isinstance(call.arguments, dict):  # not cut off
                jsonschema.validate(call.arguments, SMALL)
                calls += 1
    assert calls


@pytest.mark.slow
def test_the_page_about_constraints(capsys):
    page = (Path(__file__).parents[2] / "docs/constraints.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0]).keys() == {"name", "age"}
    assert lines[1] in ("yes", "no")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", lines[2])
    assert re.fullmatch(r"1(\+1){1,4}", lines[3])
    assert "ToolCall(name='weather', arguments={'city': " in lines[4]
