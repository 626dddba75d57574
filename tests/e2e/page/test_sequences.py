"""Whatever a person does with the page, and whatever happens to it: no message is lost.

Random sequences of what can happen, with a server whose answers are known. After each step the store
has at least what it had before; in the end it has each message that was sent, once, each answer as
far as it was seen, and each draft.
"""

import random

import pytest

from tests.support.mock_openai import counted

from .conftest import Page, journals, stored, until

SETTINGS = """
localStorage["smollm3.settings"] ??= '{"thinking": false}';
"""
BUSY = "[aria-label=Stop]"
DRAFTS = """() => Object.fromEntries(Object.entries(localStorage)
    .filter(([key]) => key.startsWith("smollm3.draft.") && !key.includes("/"))
    .map(([key, text]) => [key.slice(14), text]))"""


class Person:
    """Some tabs, and what must be in the store of their browser."""

    def __init__(self, context, mock, seed: int) -> None:
        self.context, self.mock = context, mock
        self.random = random.Random(seed)
        self.seed = seed
        self.count = 0
        self.sent: list[str] = []
        self.drafts: dict[str, str] = {}  # by conversation
        self.known: dict[str, dict] = {}  # messages, as they were stored
        self.shown: dict[str, str] = {}  # what was seen of an answer, by its question
        self.places: list[str] = []  # addresses of conversations
        self.tabs: list[Page] = []
        self.open(mock.url)

    def open(self, url: str) -> None:
        tab = Page(self.context.new_page(), url, ".composer .send")
        tab.page.wait_for_selector(".empty button:not([disabled]), .bubble")
        self.tabs.append(tab)

    def words(self, kind: str) -> str:
        self.count += 1
        return f"{kind} s{self.seed}n{self.count}"

    def tab(self) -> Page:
        return self.random.choice(self.tabs)

    def place(self, tab: Page) -> str:
        """The conversation that a tab shows; its name is in the address once there is something."""
        tab.page.wait_for_function("location.hash !== ''")
        url = tab.page.url
        if url not in self.places:
            self.places.append(url)
        return url.split("#")[1]

    # What can happen. Each returns at once: the next may come at any moment.

    def send(self) -> None:
        tab = self.tab()
        text = self.words(self.random.choice(["echo", "count"]))
        tab.page.fill("#prompt", text)
        conversation = self.place(tab)
        tab.page.press("#prompt", "Enter")
        if tab.page.input_value("#prompt") == text:
            self.drafts[conversation] = text  # an answer is being made, or there is no model
        else:
            self.drafts.pop(conversation, None)
            self.sent.append(text)

    def write(self) -> None:
        tab = self.tab()
        text = self.words("a draft")
        tab.page.fill("#prompt", text)
        self.drafts[self.place(tab)] = text

    def edit(self) -> None:
        page = self.tab().page
        if page.locator(BUSY).count() or not page.locator(".user").count():
            return
        text = self.words("count")
        page.locator(".user [aria-label=Edit]").last.dispatch_event("click")
        page.locator("[aria-label='Edit your message']").fill(text)
        page.locator(".editor .primary").click()
        page.locator(f".bubble:has-text('{text}')").wait_for()
        self.sent.append(text)

    def again(self) -> None:
        button = self.tab().page.locator("[aria-label='Another answer']:not([disabled])")
        if button.count():
            button.last.dispatch_event("click")

    def stop(self) -> None:
        self.tab().page.keyboard.press("Escape")

    def wait(self) -> None:
        self.tab().page.wait_for_timeout(self.random.choice([50, 300, 1100]))

    def look(self) -> None:
        """Remember how far an answer was seen."""
        for bubble, answer in self.tab().page.evaluate("""() =>
            [...document.querySelectorAll(".user + .assistant .markdown")].map((answer) => [
                answer.closest("article").previousSibling.querySelector(".bubble")?.innerText,
                answer.innerText])"""):
            if bubble and len(answer) > len(self.shown.get(bubble, "")):
                self.shown[bubble] = answer

    def reload(self) -> None:
        self.look_at(tab := self.tab())
        url = tab.page.url
        if self.mock.gone:
            with pytest.raises(Exception, match="ERR_"):
                tab.page.reload()
            self.back()
            self.tabs.remove(tab)
            tab.page.close()  # it shows the browser's own page
            self.open(url)
        else:
            tab.page.reload()
            tab.page.wait_for_selector(".empty button:not([disabled]), .bubble")

    def look_at(self, tab: Page) -> None:
        """What is shown when a page is loaded again must all be there afterwards."""
        chosen, self.tab = self.tab, lambda: tab
        self.look()
        self.tab = chosen

    def close(self) -> None:
        tab = self.tab()
        url = tab.page.url
        self.tabs.remove(tab)
        tab.page.close()
        if not self.tabs:
            self.back()
            self.open(url)

    def crash(self) -> None:
        tab = self.tab()
        url = tab.page.url
        with pytest.raises(Exception, match="crash"):
            tab.page.goto("chrome://crash")
        tab.page.close()
        self.tabs.remove(tab)
        # What came in the last second may be gone: test_kept.py looks at what may not.
        self.shown = {}
        self.tabs = [  # one process may have several
            other for other in self.tabs if self.lives(other)
        ]
        self.back()
        self.open(url)

    def lives(self, tab: Page) -> bool:
        try:
            return tab.page.evaluate("true")
        except Exception:
            return False

    def second(self) -> None:
        if len(self.tabs) < 3:
            self.back()
            self.open(self.tab().page.url)

    def new(self) -> None:
        self.tab().page.keyboard.press("Alt+n")

    def other(self) -> None:
        heads = self.tab().page.locator(".head")
        if count := heads.count():
            heads.nth(self.random.randrange(count)).dispatch_event("click")

    def gone(self) -> None:
        self.mock.gone = True

    def back(self) -> None:
        self.mock.gone = False

    STEPS = (
        [send] * 8
        + [write, again, stop, wait, wait, look, reload, reload, close, crash, second, second]
        + [edit, new, other, gone, back, back]
    )

    def step(self) -> str:
        act = self.random.choice(self.STEPS)
        act(self)
        self.check()
        return act.__name__

    def check(self) -> None:
        """The store has what it had, and no answer became shorter."""
        now = stored(self.tabs[0].page)
        for name, before in self.known.items():
            assert name in now
            assert now[name]["content"].startswith(before["content"])
            assert now[name]["version"] >= before["version"]
        self.known = now

    def finish(self) -> None:
        """Let it all end, and read what a page that is opened then has."""
        self.back()
        for tab in self.tabs:
            tab.page.wait_for_selector(BUSY, state="detached")
            assert tab.errors == []
        url = self.tabs[0].page.url
        for tab in self.tabs:
            tab.page.close()
        self.tabs = []
        self.open(url)
        page = self.tabs[0].page
        until(page, lambda: not journals(page))
        self.check()
        sent = [node["content"] for node in self.known.values() if node["role"] == "user"]
        assert sorted(sent) == sorted(self.sent)
        longest: dict[str, str] = {}
        for node in self.known.values():
            if node["role"] == "user":
                continue
            question = self.known[node["parent"]]["content"]
            self.check_answer(node, question)
            longest[question] = max(longest.get(question, ""), node["content"], key=len)
        for question, seen in self.shown.items():
            assert longest[question].startswith(seen)
        assert page.evaluate(DRAFTS) == self.drafts
        for place in self.places:
            self.check_shown(page, place)

    def check_answer(self, node: dict, question: str) -> None:
        if question.startswith("echo"):
            text = f"You said: {question}. There were "
            assert node["content"].startswith(text[: len(node["content"])])
            assert node["state"] != "done" or node["content"].endswith(" messages.")
        else:
            text = counted(question)
            assert text.startswith(node["content"])
            assert node["state"] != "done" or node["content"] == text

    def check_shown(self, page, place: str) -> None:
        name = place.split("#")[1]
        page.evaluate("name => { location.hash = name }", name)
        page.wait_for_function(
            "text => document.querySelector('#prompt').value === text",
            arg=self.drafts.get(name, ""),
        )


def play(browser, mock, seed: int, steps: int) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 700})
    context.add_init_script(SETTINGS)
    person = Person(context, mock, seed)
    done = []
    try:
        for _ in range(steps):
            done.append(person.step())
        person.finish()
    except BaseException as error:
        error.add_note(f"seed {seed}: {', '.join(done)}")
        raise
    finally:
        context.close()


@pytest.mark.parametrize("seed", range(1000, 1003))
def test_nothing_is_lost(browser, mock, seed):
    play(browser, mock, seed, 14)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_lost_in_two_hundred_sequences(browser, mock, seed):
    play(browser, mock, seed, 14)
