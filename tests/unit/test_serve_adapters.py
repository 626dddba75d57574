"""Adapters over HTTP: a request's `model` names one; they come and go behind the key."""

import pytest
from click.testing import CliRunner
from tests.support.adapters import random_adapter, save_adapter
from tests.support.fake_backend import CONFIG, FakeBackend
from tests.support.noise import CONFIG as NOISE
from tests.support.noise import save_noise
from tests.support.serving import Settings, local, post

from smollm3.cli import cli
from smollm3.errors import UserError
from smollm3.infer import Engine
from smollm3.serve.run import run
from smollm3.serve.settings import adapters_of
from smollm3.serve.vllm import command

KEY = "k" * 24
BEARER = {"authorization": f"Bearer {KEY}"}
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    for i in range(2):
        save_adapter(place / f"a{i}", random_adapter(CONFIG, i, 3))
    return place


@pytest.fixture
def engine(tokenizer, place):
    with Engine(FakeBackend(blocks=256), tokenizer) as engine:
        for i in range(2):
            engine.adapters.load(f"a{i}", place / f"a{i}")
        yield engine


def test_a_requests_model_names_its_adapter(engine):
    client = local(engine, Settings(aliases=("gpt-*",)))
    common = {"temperature": 0, "max_tokens": 8}
    asked = {
        "/v1/chat/completions": (
            {"messages": MESSAGES, **common}, lambda r: r["choices"][0]["message"]
        ),
        "/v1/completions": (
            {"prompt": "Hello", **common}, lambda r: r["choices"][0]["text"]
        ),
        "/v1/responses": (
            {"input": "Hello", "temperature": 0, "max_output_tokens": 24, "store": False},
            lambda r: [item.get("content") for item in r["output"]],
        ),
        "/v1/messages": ({"messages": MESSAGES, **common}, lambda r: r["content"]),
        "/api/chat": (
            {"messages": MESSAGES, "stream": False, "options": {"num_predict": 8, "temperature": 0}},
            lambda r: r["message"],
        ),
        "/v1/embeddings": ({"input": "Hello"}, lambda r: r["data"][0]["embedding"]),
        "/v1/rerank": (
            {"query": "Hello", "documents": ["a"]}, lambda r: r["results"][0]["relevance_score"]
        ),
    }  # fmt: skip
    for path, (body, told) in asked.items():
        names = ("tiny", "a0", "a1", "a0", "gpt-4")
        found = [told(post(client, path, model=name, **body)) for name in names]
        assert found[1] == found[3], path
        assert found[0] == found[4], path
        assert found[0] != found[1] != found[2] != found[0], path
    tagged = post(client, "/api/chat", model="a1:latest", **asked["/api/chat"][0])
    assert (
        tagged["message"]
        == post(client, "/api/chat", model="a1", **asked["/api/chat"][0])["message"]
    )
    refused = post(client, "/v1/chat/completions", 404, model="a2", messages=MESSAGES)
    assert "there is 'tiny', 'a0', 'a1'" in refused["error"]["message"]


def test_models_are_the_model_and_its_adapters(engine):
    client = local(engine)
    listed = client.get("/v1/models").json()
    assert [(m["id"], m["parent"]) for m in listed["data"]] == [
        ("tiny", None), ("a0", "tiny"), ("a1", "tiny")
    ]  # fmt: skip
    assert listed["last_id"] == "a1"
    assert client.get("/v1/models/a1").json() == listed["data"][2]
    assert client.get("/v1/models/a2").status_code == 404


def test_adapters_come_and_go_behind_the_key(engine, place):
    client = local(engine, keys=[KEY], headers=BEARER)
    loading = {"lora_name": "new", "lora_path": str(place / "a1")}
    reply = client.post("/v1/load_lora_adapter", json=loading)
    assert reply.status_code == 200
    assert reply.text == "Success: LoRA adapter 'new' added successfully."
    assert "new" in [m["id"] for m in client.get("/v1/models").json()["data"]]
    post(client, "/v1/completions", model="new", prompt="x", max_tokens=3)
    for body, status, said in (
        (loading, 400, "loaded already"),
        ({**loading, "lora_name": "tiny"}, 400, "is the model itself"),
        ({"lora_name": "x", "lora_path": str(place)}, 400, "holds no adapter"),
        ({"lora_name": "x"}, 400, "lora_path"),
    ):
        assert said in post(client, "/v1/load_lora_adapter", status, **body)["error"]["message"]
    reply = client.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
    assert reply.text == "Success: LoRA adapter 'new' removed successfully."
    post(client, "/v1/completions", 404, model="new", prompt="x")
    post(client, "/v1/unload_lora_adapter", 404, lora_name="new")


def test_without_a_key_nobody_changes_what_is_served(engine, place):
    for client, status in ((local(engine), 403), (local(engine, keys=[KEY]), 401)):
        post(client, "/v1/load_lora_adapter", status, lora_name="x", lora_path=str(place / "a1"))
        post(client, "/v1/unload_lora_adapter", status, lora_name="a1")
    assert set(engine.adapters.folders) == {"a0", "a1"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("runs/mine", "other=/x/y"), {"mine": "runs/mine", "other": "/x/y"}),
        (("a=x", "b=x=y"), {"a": "x", "b": "x=y"}),
        (("a=x", "a=y"), None),
        (("=x",), None),
        (("a=",), None),
    ],
)
def test_adapters_of_the_command_line(given, found):
    if found is None:
        with pytest.raises(UserError, match="an id of its own"):
            adapters_of(Settings(adapters=given))
    else:
        assert adapters_of(Settings(adapters=given)) == found


def test_they_are_there_from_the_start(tokenizer, place, monkeypatch):
    seen = []
    monkeypatch.setattr("smollm3.serve.run.Server.run", lambda self, _: seen.append(self._service))
    settings = Settings(port=0, adapters=(str(place / "a0"), f"mine={place / 'a1'}"))
    run(lambda: Engine(FakeBackend(), tokenizer), settings, "tiny")
    assert list(seen[0].engine.adapters.folders) == ["a0", "mine"]
    with pytest.raises(UserError, match="holds no adapter"):
        run(lambda: pytest.fail("loaded"), Settings(port=0, adapters=("mine=/nowhere",)), "tiny")


def test_vllm_gets_the_adapters(place, tmp_path):
    words = command(tmp_path, "x", Settings(adapters=(f"mine={place / 'a0'}",)), {})
    assert "--enable-lora --max-loras=1 --max-lora-rank=8 --lora-modules" in " ".join(words)
    assert words[words.index("--lora-modules") + 1] == f"mine={place / 'a0'}"


def test_generate_and_chat_take_one(tokenizer, tmp_path):
    save_noise(tmp_path / "base", tokenizer)
    save_adapter(tmp_path / "mine", random_adapter(NOISE, 0, 3))
    answers = []
    for adapter in ([], ["--adapter", str(tmp_path / "mine")]):
        for words in (
            ["generate", str(tmp_path / "base"), "Hello"],
            ["chat", str(tmp_path / "base")],
        ):
            command = [*words, "--max-tokens", "8", "--temperature", "0", *adapter]
            outcome = CliRunner().invoke(cli, command, input="Hello\n")
            assert outcome.exit_code == 0, outcome.output
            answers.append(outcome.output)
    assert len(set(answers)) == 4
    outcome = CliRunner().invoke(
        cli, ["generate", str(tmp_path / "base"), "x", "--adapter", str(tmp_path)]
    )
    assert "holds no adapter" in str(outcome.exception)
