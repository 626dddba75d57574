import httpx2
import pytest

from tests.attack.victim import Victim, victim


@pytest.fixture(scope="module")
def server():
    """A server of its usual settings that has answered once."""
    with victim() as found:
        warm_up(found)
        yield found


def warm_up(found: Victim) -> None:
    """What is loaded with the first answers is no growth."""
    said = [{"role": "user", "content": "hi"}]
    for path in ("/v1/chat/completions", "/v1/messages"):
        for bad in ({}, {"no": 1}):
            body = {"messages": said, "max_tokens": 1, **bad}
            httpx2.post(found.url + path, json=body, timeout=60)
