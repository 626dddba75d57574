"""The chat page on our own server: its tokens, its tools, its questions."""

import dataclasses
import threading

import pytest

from smollm3.infer import Engine
from tests.support.fake_backend import CONFIG, FakeBackend
from tests.support.mock_openai import BUILT, STATIC

from .conftest import Page


@pytest.fixture(scope="module")
def real(built, tokenizer):
    """The address of our own server on a model whose answers are noise."""
    uvicorn = pytest.importorskip("uvicorn", reason="the server's extra is not installed")
    create_app = pytest.importorskip("smollm3.serve.app", reason="no server here").create_app
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, context=1600)
    with Engine(FakeBackend(config=config), tokenizer) as engine:
        app = create_app(engine)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.mark.skipif(STATIC != BUILT, reason="the server shows the page that is built in")
def test_on_our_own_server(context, real, tokenizer):
    chat = Page(context.new_page(), real)
    chat.page.keyboard.press("Alt+,")
    chat.page.fill("[name=max_tokens]", "40")
    chat.page.fill("[name=seed]", "3")
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("Alt+g")
    chat.ask("été 日本")
    assert "/ 1,600" in chat.page.inner_text(".context")
    chat.page.click(".glass-prompt summary")
    chat.page.locator(".prompt-token").first.wait_for()
    prompt = "".join(chat.page.locator(".prompt-token").all_inner_texts()).replace("↵", "")
    assert "<|im_start|>system" in prompt
    assert prompt.rstrip().endswith("<|im_start|>assistant")
    tokens = chat.page.locator(".glass-answer .token")
    before = tokens.all_inner_texts()
    assert len(before) > 12
    tokens.nth(10).click()
    other = chat.page.locator(".alternatives button:not([disabled])").first
    other.click()
    chat.settled()
    after = tokens.all_inner_texts()
    assert after[:10] == before[:10]
    assert len(after) > 11
    assert chat.page.locator(".token.changed").count() == 1
    assert chat.page.locator(".problem").count() == 0
    assert chat.errors == []


SAYS = {
    "burn": '<code>\nerase("a")\n</code>',
    "sum": "<code>\ntotal = 40 + 2\ntotal\n</code>",
    "42": "it is **42**",
    "not allow": "as you wish",
    "is erased": "gone",
}


@pytest.fixture
def erased():
    return []


@pytest.fixture
def tooled(built, tokenizer, erased):
    """The address of a server that runs Python, in which something can be erased."""
    agents = pytest.importorskip("smollm3.agent")
    serving = pytest.importorskip(
        "tests.support.serving", reason="the server's extra is not installed"
    )

    def erase(name: str) -> str:
        """Erase something."""
        erased.append(name)
        return f"{name} is erased"

    with (
        serving.speaking(tokenizer, SAYS) as engine,
        agents.Agent(engine, python_tools=[erase]) as agent,
        serving.listening(engine, agent=agent) as (url, _),
    ):
        yield url


@pytest.mark.skipif(STATIC != BUILT, reason="the server shows the page that is built in")
class TestTheServersTools:
    @pytest.fixture
    def chat(self, context, tooled):
        chat = Page(context.new_page(), tooled)
        chat.page.keyboard.press("Alt+t")
        chat.page.keyboard.press("Alt+,")
        chat.page.fill("[name=temperature]", "0")
        chat.page.keyboard.press("Escape")
        yield chat
        assert chat.errors == []

    def question(self, chat):
        return chat.page.locator("[role=alertdialog]")

    def test_python_runs_and_the_answer_goes_on(self, chat):
        chat.ask("sum", wait=False)
        chat.page.wait_for_selector(".markdown:has-text('it is 42')")
        assert chat.page.locator(".call .result").inner_text() == "42"
        assert "done" in chat.page.locator(".call h3").inner_text()
        assert self.question(chat).count() == 0
        chat.page.reload()
        chat.page.wait_for_selector(".call .result")

    def test_what_changes_something_is_asked_about(self, chat, erased):
        chat.ask("burn", wait=False)
        question = self.question(chat)
        question.wait_for()
        assert "erase" in question.inner_text()
        assert '"name": "a"' in question.inner_text()
        assert erased == []
        question.get_by_text("Do not").click()
        chat.page.wait_for_selector(".markdown:has-text('as you wish')")
        assert erased == []
        assert "did not allow" in chat.page.locator(".call .result").inner_text()
        chat.settled()
        chat.ask("burn", wait=False)
        question.get_by_text("Allow once").click()
        chat.page.wait_for_selector(".markdown:has-text('gone')")
        assert erased == ["a"]
        chat.settled()
        chat.ask("burn", wait=False)
        question.get_by_text("Always").click()
        chat.page.locator(".markdown:has-text('gone')").nth(1).wait_for()
        chat.settled()
        chat.ask("burn", wait=False)
        chat.page.locator(".markdown:has-text('gone')").nth(2).wait_for()
        assert erased == ["a"] * 3

    def test_to_stop_is_to_refuse(self, chat, erased):
        chat.ask("burn", wait=False)
        self.question(chat).wait_for()
        chat.page.keyboard.press("Escape")
        chat.page.wait_for_selector(".note:has-text('The call was stopped')")
        assert self.question(chat).count() == 0
        assert erased == []

    def test_switched_off_they_are_not_offered(self, chat, erased):
        chat.page.click("button.toggle:has-text('Tools')")
        bodies = []
        chat.page.on("request", lambda request: bodies.append(request.post_data or ""))
        chat.ask("burn")
        assert not any("python_tools" in body for body in bodies)
        assert erased == []
