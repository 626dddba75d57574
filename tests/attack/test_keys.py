"""Between keys: nobody's grammars, kept things or tools are another's to use up or to learn of."""

import pytest

from smollm3.infer.constrain.grammars import Regex
from smollm3.serve.conversation_store import ConversationStore, StoredConversation
from smollm3.serve.response_store import ResponseStore
from tests.support.serving import Settings, local, post, speaking

pytestmark = pytest.mark.xdist_group("attack")
KEYS = "first-key-of-the-tests", "second-key-of-the-tests"


def test_grammars_are_each_keys_own(tokenizer):
    """Whether one is ready says that somebody asked for it."""
    with speaking(tokenizer, {"hi": "one"}) as engine:
        for salt in ("a", "a", "b"):
            engine.submit("hi", constraint=Regex("one"), cache_salt=salt).result()
        assert sorted(salt for salt, _ in engine._constraints._ready) == ["a", "b"]


@pytest.mark.parametrize(("count", "size"), [(10, 1 << 20), (1000, 30_000)])
def test_responses_of_others_stay(count, size):
    store = ResponseStore(count, size)
    for number in range(3):
        store.put("a", [], [], {"id": f"r{number}", "output": []})
    for number in range(300):
        store.put("b", [], [], {"id": f"s{number}", "output": [], "text": "x" * 400})
    assert all(store.get("a", f"r{number}") for number in range(3))
    assert store.get("b", "s299")
    assert len(store._shelf) <= count
    assert store._shelf.used <= size


def test_conversations_of_others_stay():
    store = ConversationStore(8, 1 << 20)
    store.put("a", StoredConversation("c", 0, {}))
    for number in range(100):
        store.put("b", StoredConversation(f"d{number}", 0, {}))
    assert store.get("a", "c")
    assert store.get("b", "d99")


def test_kept_responses_over_http(tokenizer):
    """The server's second key finds its own, however many the first one keeps."""
    with (
        speaking(tokenizer, {"hi": "one"}) as engine,
        local(engine, Settings(stored_responses=4), KEYS) as client,
    ):
        asked = {"input": "hi", "max_output_tokens": 2}
        client.headers["authorization"] = f"Bearer {KEYS[1]}"
        mine = post(client, "/v1/responses", **asked)["id"]
        client.headers["authorization"] = f"Bearer {KEYS[0]}"
        for _ in range(8):
            post(client, "/v1/responses", **asked)
        assert client.get(f"/v1/responses/{mine}").status_code == 404
        client.headers["authorization"] = f"Bearer {KEYS[1]}"
        assert client.get(f"/v1/responses/{mine}").status_code == 200
