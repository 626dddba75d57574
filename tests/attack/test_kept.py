"""What is kept for a client grows by what each request may bring; what is gone on from is measured, too.

Bound: however a conversation grew, a request on it is less than a second's work. 41,000 calls in one
held everybody up for seven seconds of work, as each was joined to the ones before it.
"""

import httpx2
import pytest

from smollm3.serve import conversation_store
from smollm3.serve.conversation_store import ConversationStore, StoredConversation
from smollm3.serve.dialects.openai_kept import MOST_ITEMS

pytestmark = pytest.mark.xdist_group("attack")
CALLS = [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}] * 1024
OTHERS = [{"type": "computer_call", "text": "x" * 1000}] * 3000  # no part of the prompt


def post(server, path, **body):
    return httpx2.post(server.url + path, json=body, timeout=60)


def test_a_conversation_does_not_grow_without_end(server):
    name = post(server, "/v1/conversations").json()["id"]
    path = f"/v1/conversations/{name}/items"
    for _ in range(MOST_ITEMS // len(CALLS)):
        assert post(server, path, items=CALLS).status_code == 200
    work = server.work
    for place, body in (
        (path, {"items": CALLS}),
        ("/v1/responses", {"input": "hi", "conversation": name}),
    ):
        told = post(server, place, **body)
        assert told.status_code == 400
        assert told.json()["error"]["code"] == "too_long_to_go_on"
    assert server.work - work < 1


def test_nor_does_a_chain_of_responses(server):
    """Items that are left out of the prompt count too: what is kept is what is gone on from."""
    name, codes = None, []
    for _ in range(4):
        begun = server.work
        told = post(
            server, "/v1/responses", input=[*OTHERS, {"role": "user", "content": "hi"}],
            max_output_tokens=1, previous_response_id=name,
        )  # fmt: skip
        assert server.work - begun < 1
        codes.append(told.status_code)
        name = told.json().get("id")
        if told.status_code != 200:
            assert told.json()["error"]["code"] == "too_long_to_go_on"
            break
    assert codes == [200, 200, 400]


def test_an_addition_costs_what_it_adds(monkeypatch):
    """Not what is there already: of many small ones the last is as cheap as the first."""
    measured = []
    footprint = conversation_store.footprint
    monkeypatch.setattr(
        conversation_store, "footprint", lambda value: measured.append(value) or footprint(value)
    )
    store = ConversationStore(8, 1 << 20)
    store.put("a", StoredConversation("c", 0, {}))
    for number in range(100):
        store.add("a", "c", [{"id": str(number)}])
    assert [len(items) for items in measured[1:]] == [1] * 100
    kept = store.get("a", "c")
    assert [item["id"] for item in kept.items] == [str(number) for number in range(100)]
    before = kept.size
    store.put("a", kept)
    assert abs(kept.size - before) < 400 * 100


def test_labels_are_short(server):
    for labels in ({"k" * 65: "a"}, {"k": "a" * 513}, {f"k{i}": "a" for i in range(17)}):
        for path, more in (("/v1/conversations", {}), ("/v1/responses", {"input": "hi"})):
            assert post(server, path, metadata=labels, **more).status_code == 400
