"""The chat page in headless Chromium, on a scripted server."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.mock_openai import BUILT, STATIC, Mock

UI = Path(__file__).resolve().parents[3] / "ui"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP page.test 127.0.0.1",  # a page over plain http, not on localhost
]
SECONDS = 60_000  # milliseconds that anything may take, on a busy machine too


def pytest_collection_modifyitems(items):
    """One browser: all tests of the page in one worker."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("page"))


@pytest.fixture(scope="session")
def built() -> Path:
    """The page's files, built where they are older than their source."""
    if STATIC == BUILT:
        done = subprocess.run(
            [sys.executable, UI / "page.py"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "build failed" not in done.stderr
        if done.returncode:
            pytest.skip(done.stderr.strip().splitlines()[-1])
    return STATIC


@pytest.fixture(scope="module")
def browser(built):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("Chromium is not here (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def mock():
    with Mock() as server:
        yield server


class Page:
    """A person in front of the page."""

    def __init__(self, page, url: str, ready: str = ".empty button:not([disabled])") -> None:
        self.page = page
        self.errors: list[str] = []
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda m: self.errors.append(m.text) if "Content Security" in m.text else None,
        )
        page.goto(url)
        page.wait_for_selector(ready)

    def ask(self, text: str, wait: bool = True) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        if wait:
            self.settled()

    def settled(self) -> None:
        """No answer is being made, and the last is shown with its figures."""
        self.page.wait_for_selector("[aria-label='Stop']", state="detached")
        self.page.locator(".assistant .actions").last.wait_for()

    def listed(self, count: int) -> None:
        """That many conversations are in the list."""
        for i, state in ((count - 1, "attached"), (count, "detached")):
            if i >= 0:
                self.page.locator(".list li").nth(i).wait_for(state=state)

    @property
    def answers(self) -> list[str]:
        return self.page.locator(".assistant .markdown").all_inner_texts()

    @property
    def questions(self) -> list[str]:
        return self.page.locator(".bubble").all_inner_texts()


def tab_at(context, url: str, script: str = "") -> Page:
    """A new tab that shows a conversation; `script` runs before the page's."""
    tab = context.new_page()
    if script:
        tab.add_init_script(script)
    return Page(tab, url, ".bubble")


def stored(page) -> dict:
    """The messages in the browser's store, by id."""
    return page.evaluate("""async () => {
        const done = (request) => new Promise((yes, no) => {
            request.onsuccess = () => yes(request.result);
            request.onerror = () => no(request.error);
        });
        const db = await done(indexedDB.open("smollm3"));
        const nodes = await done(db.transaction("messages").objectStore("messages").getAll());
        db.close();
        return Object.fromEntries(nodes.map((node) => [node.id, node]));
    }""")


def until(page, holds) -> None:
    """Wait until it holds; fails where it never does."""
    end = time.monotonic() + SECONDS / 1000
    while not holds():
        assert time.monotonic() < end
        page.wait_for_timeout(30)


def journals(page) -> int:
    """How many conversations have something that is not in the store yet."""
    keys = page.evaluate("Object.keys(localStorage)")
    return sum(key.startswith("smollm3.journal.") for key in keys)


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def chat(context, mock):
    page = Page(context.new_page(), mock.url)
    yield page
    assert page.errors == []
