"""What the chat page must not lose: messages in two tabs, answers at a reload, drafts. And what it
says where the browser keeps nothing."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import UI, Page, journals, stored, tab_at, until

DEAF = "window.BroadcastChannel = class { postMessage() {} };"
BLOCKED = """
Object.defineProperty(window, "indexedDB", { get() { throw new DOMException("no", "SecurityError"); } });
Object.defineProperty(window, "localStorage", { get() { throw new DOMException("no", "SecurityError"); } });
"""
# As a transaction ends for which there is no room.
FULL = """
const put = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function (...given) {
  const request = put.apply(this, given);
  if (!window.full) return request;
  const error = new DOMException("no room", "QuotaExceededError");
  Object.defineProperty(this.transaction, "error", { value: error, configurable: true });
  request.addEventListener("success", () => this.transaction.abort());
  return request;
};
"""


def texts(page, role="user"):
    return sorted(node["content"] for node in stored(page).values() if node["role"] == role)


def toast(page, text, bad=False):
    page.wait_for_selector(f".toast{'.bad' if bad else ':not(.bad)'}:has-text('{text}')")


def test_two_tabs_show_and_keep_what_either_does(chat, context):
    chat.ask("echo from A")
    other = tab_at(context, chat.page.url)
    assert other.questions == ["echo from A"]
    other.ask("echo from B")
    chat.page.wait_for_selector(".bubble:has-text('echo from B')")
    chat.page.wait_for_selector(".markdown:has-text('There were 3 messages')")
    chat.ask("echo again from A")
    other.page.wait_for_selector(".markdown:has-text('There were 5 messages')")
    for tab in (chat, other):
        tab.page.reload()
        tab.page.wait_for_selector(".bubble:has-text('echo again from A')")
        assert tab.questions == ["echo from A", "echo from B", "echo again from A"]
    chat.page.keyboard.press("Alt+t")  # settings are shared, too
    other.page.wait_for_selector(".toggle[aria-pressed=false]:has-text('Think')")


def test_a_tab_that_hears_nothing_overwrites_nothing(chat, context):
    chat.ask("echo start")
    deaf = tab_at(context, chat.page.url, DEAF)
    chat.ask("echo from A")
    deaf.ask("echo from B")  # does not know of A's
    assert deaf.questions == ["echo start", "echo from B"]
    chat.ask("echo more from A")
    assert texts(chat.page) == ["echo from A", "echo from B", "echo more from A", "echo start"]
    assert len(texts(chat.page, "assistant")) == 4
    chat.page.reload()
    chat.page.wait_for_selector(".versions:has-text('2')")  # both are there to be walked between


def test_an_answer_is_seen_and_stopped_from_another_tab(chat, context, mock):
    chat.ask("hold it", wait=False)
    chat.page.wait_for_selector(".markdown:has-text('As far as this,')")
    other = tab_at(context, chat.page.url)
    other.page.wait_for_selector(".markdown:has-text('As far as this,')")
    other.page.wait_for_selector(".note:has-text('arrives in another tab')")
    other.page.click("[aria-label=Stop]")
    for tab in (chat, other):
        tab.page.wait_for_selector(".note:has-text('Stopped.')")
    assert mock.broken_off.wait(5) or mock.goes_on.set() is None


@pytest.mark.parametrize("how", ["reload", "crash", pytest.param("close", marks=pytest.mark.slow)])
def test_what_came_of_an_answer_outlives_its_page(chat, context, mock, how):
    chat.ask("hold it", wait=False)
    chat.page.wait_for_selector(".markdown:has-text('As far as this,')")
    url = chat.page.url
    if how == "reload":
        chat.page.reload()  # at once: what the last second brought is in the journal
    else:
        # Each second it is stored.
        until(chat.page, lambda: "As far as this," in texts(chat.page, "assistant"))
    if how == "close":
        chat.page.close()
        chat.page = tab_at(context, url).page
    elif how == "crash":
        with pytest.raises(Exception, match="crash"):
            chat.page.goto("chrome://crash")
        chat.page = tab_at(context, url).page
    chat.page.wait_for_selector(".markdown:has-text('As far as this,')")
    assert chat.questions == ["hold it"]
    chat.page.locator(".note").wait_for()
    mock.goes_on.set()
    chat.page.locator("[aria-label='Another answer']").click()
    chat.page.wait_for_selector(".markdown:has-text('and no further.')")
    assert chat.errors == []


def test_a_message_is_safe_from_the_moment_it_is_sent(chat, mock):
    chat.ask("echo one")
    # The store takes no more: only the journal has the next message.
    chat.page.evaluate("void (IDBDatabase.prototype.transaction = () => { throw Error('no') })")
    chat.ask("echo two")
    assert journals(chat.page) == 1
    chat.page.reload()
    chat.page.wait_for_selector(".bubble:has-text('echo two')")
    assert chat.questions == ["echo one", "echo two"]
    until(chat.page, lambda: not journals(chat.page))


def test_a_draft_stays_with_its_conversation(chat, context):
    prompt = chat.page.locator("#prompt")
    chat.ask("echo one")
    first = chat.page.url
    prompt.fill("a draft")
    chat.page.reload()
    chat.page.wait_for_selector(".bubble")
    assert prompt.input_value() == "a draft"
    chat.page.keyboard.press("Alt+n")
    assert prompt.input_value() == ""
    prompt.fill("another, without any message")
    chat.page.reload()
    chat.page.wait_for_selector(".head:has-text('Draft: another')")
    assert prompt.input_value() == "another, without any message"
    chat.page.click(".head:has-text('echo one')")
    chat.page.wait_for_selector(".bubble:has-text('echo one')")
    assert prompt.input_value() == "a draft"
    other = tab_at(context, first)
    assert other.page.locator("#prompt").input_value() == "a draft"
    other.page.fill("#prompt", "echo a draft, longer")
    chat.page.wait_for_function("document.querySelector('#prompt').value.endsWith('longer')")
    other.page.press("#prompt", "Enter")
    other.settled()
    chat.page.wait_for_function("document.querySelector('#prompt').value === ''")
    chat.page.reload()
    chat.page.wait_for_selector(".bubble:has-text('longer')")
    assert prompt.input_value() == ""


@pytest.mark.slow
def test_an_edit_and_a_result_are_drafts_too(chat, mock):
    chat.ask("use a tool")
    chat.page.fill(".result-entry textarea", "21 degrees")
    chat.page.hover(".user")
    chat.page.click(".user [aria-label=Edit]")
    chat.page.fill("[aria-label='Edit your message']", "use another")
    chat.page.reload()
    chat.page.wait_for_selector("[aria-label='Edit your message']")
    assert chat.page.input_value("[aria-label='Edit your message']") == "use another"
    assert chat.page.input_value(".result-entry textarea") == "21 degrees"
    chat.page.press("[aria-label='Edit your message']", "Escape")
    chat.page.wait_for_selector(".user [aria-label=Edit]:focus")
    chat.page.click("text=Send result")
    chat.settled()
    assert mock.asked[-1]["messages"][-1]["content"] == "21 degrees"
    chat.page.reload()
    chat.page.wait_for_selector(".call .result")
    assert chat.page.locator("[aria-label='Edit your message']").count() == 0


def test_deleted_in_another_tab_it_stays_deleted(chat, context):
    chat.ask("echo one")
    chat.ask("hold it", wait=False)
    chat.page.wait_for_selector(".markdown:has-text('As far as this,')")
    other = tab_at(context, chat.page.url)
    other.page.once("dialog", lambda dialog: dialog.accept())
    other.page.hover(".list li.here")
    other.page.click(".list li.here [aria-label^=Delete]")
    toast(chat.page, "deleted in another tab")
    chat.page.locator(".bubble").wait_for(state="detached")
    for tab in (chat, other):
        tab.page.reload()
        tab.page.wait_for_selector(".empty")
        tab.listed(0)
        assert stored(tab.page) == {}


@pytest.mark.slow
def test_what_is_written_in_a_deleted_conversation_goes_on_in_a_new_one(chat, context):
    chat.ask("echo one")
    deaf = tab_at(context, chat.page.url, DEAF)
    chat.page.once("dialog", lambda dialog: dialog.accept())
    chat.page.hover(".list li.here")
    chat.page.click(".list li.here [aria-label^=Delete]")
    chat.listed(0)
    deaf.ask("echo two")
    toast(deaf.page, "goes on as a new one")
    deaf.page.reload()
    deaf.page.wait_for_selector(".bubble:has-text('echo two')")
    assert deaf.questions == ["echo one", "echo two"]
    deaf.listed(1)


@pytest.mark.slow
def test_conversations_of_the_page_before_are_taken_over(context, mock):
    page = context.new_page()
    page.goto(f"{mock.url}/assets/icon.svg")
    node = {"id": "n", "parent": None, "time": 1, "role": "user", "content": "echo of old"}
    old = {"id": "c", "title": "old", "updated": 1, "system": "", "leaf": "n", "nodes": {"n": node}}
    page.evaluate(
        """(old) => new Promise((done) => {
            const request = indexedDB.open("smollm3", 1);
            request.onupgradeneeded = () => {
                request.result.createObjectStore("heads", { keyPath: "id" }).put(old);
                request.result.createObjectStore("conversations", { keyPath: "id" }).put(old);
            };
            request.onsuccess = () => { request.result.close(); done(); };
        })""",
        old,
    )
    page.close()
    chat = tab_at(context, f"{mock.url}/#c")
    assert chat.questions == ["echo of old"]
    chat.ask("echo of new")
    chat.page.reload()
    chat.page.wait_for_selector(".bubble:has-text('echo of new')")
    assert chat.questions == ["echo of old", "echo of new"]


def test_a_browser_that_keeps_nothing_says_so(browser, mock):
    context = browser.new_context()
    context.add_init_script(BLOCKED)
    chat = Page(context.new_page(), mock.url)
    toast(chat.page, "This browser keeps no conversations", bad=True)
    chat.ask("echo one")
    chat.page.keyboard.press("Alt+t")
    toast(chat.page, "This browser keeps nothing now", bad=True)
    assert chat.page.get_attribute(".toggle", "aria-pressed") == "false"
    chat.ask("echo two")
    assert len(chat.answers) == 2
    with chat.page.expect_event("dialog") as asked:
        chat.page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.accept()
    assert chat.errors == []
    context.close()


@pytest.mark.slow
def test_a_full_store_says_so_and_goes_on_when_there_is_room(context, mock):
    context.add_init_script(FULL)
    chat = Page(context.new_page(), mock.url)
    chat.ask("echo one")
    chat.page.evaluate("window.full = true")
    chat.ask("echo two")
    toast(chat.page, "This browser has no more room", bad=True)
    chat.page.click("[aria-label='Close this message']")
    chat.page.locator(".toast").wait_for(state="detached")
    chat.page.evaluate("window.full = false")
    chat.ask("echo three")
    toast(chat.page, "kept again")
    assert texts(chat.page) == ["echo one", "echo three", "echo two"]
    assert chat.errors == []


def test_a_file_that_is_no_conversation_is_refused_aloud(chat, tmp_path):
    circle = {
        name: {"id": name, "parent": other, "time": 1, "role": "user", "content": "x"}
        for name, other in (("a", "b"), ("b", "a"))
    }
    cases = [
        ("{", "this is not JSON"),
        ("[1]", "this is not a conversation exported from this page"),
        (json.dumps({"nodes": circle, "leaf": "a"}), "a message in this file is damaged"),
        (json.dumps({"nodes": {"a": None}, "leaf": "a"}), "a message in this file is damaged"),
    ]
    file = tmp_path / "talk.json"
    for text, said in cases:
        file.write_text(text)
        chat.page.set_input_files("input[type=file]", file)
        toast(chat.page, f"talk.json was not imported: {said}", bad=True)
        chat.page.click("[aria-label='Close this message']")
    assert chat.page.locator(".list li").count() == 0


def test_copying_works_over_plain_http_and_is_seen(browser, mock):
    context = browser.new_context()
    chat = Page(context.new_page(), mock.url.replace("127.0.0.1", "page.test"))
    assert chat.page.evaluate("navigator.clipboard === undefined")
    chat.ask("echo this")
    chat.page.hover(".user")
    chat.page.click(".user [aria-label=Copy]")
    toast(chat.page, "Copied.")
    assert chat.page.inner_text("[role=status]") == "Copied."  # for screen readers
    chat.page.focus("#prompt")
    chat.page.keyboard.press("Control+v")
    assert chat.page.locator("#prompt").input_value() == "echo this"
    chat.page.evaluate("document.execCommand = () => false")
    chat.page.click(".assistant [aria-label=Copy]")
    toast(chat.page, "did not allow copying", bad=True)
    assert chat.errors == []
    context.close()


@pytest.mark.slow
def test_numbers_that_do_not_do_are_named(chat):
    chat.page.keyboard.press("Alt+,")
    chat.page.fill("[name=temperature]", "3")
    said = chat.page.locator(".field:has([name=temperature]) [role=alert]")
    assert re.search(r"Until then 0\.6 is used", said.inner_text())
    chat.page.fill("[name=temperature]", "0.5")
    said.wait_for(state="detached")


SOURCE = UI / "src" / "conversation.js"
NODE = shutil.which("node")


def join_of(source: Path):
    script = Path(__file__).with_name("join.test.mjs")
    return subprocess.run(
        [NODE, script, source], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(NODE is None, reason="node is not here")
def test_the_join_of_two_copies():
    done = join_of(SOURCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2000 triples\n"


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="node is not here")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" || (n === m && by > other)", ""),
        ("n > m ||", "n >= m ||"),
        ("if (a.removed || b.removed)", "if (a.removed)"),
        ("Math.max(a.updated, b.updated)", "a.updated"),
        ("nodes[node.id] ? later(nodes[node.id], node) : node", "node"),
        ("node.version = (node.version ?? 0) + 1;", ""),
    ],
)
def test_a_broken_join_is_noticed(old, new, tmp_path):
    text = SOURCE.read_text()
    assert text.count(old) == 1
    broken = tmp_path / "conversation.mjs"
    broken.write_text(text.replace(old, new))
    assert join_of(broken).returncode == 1


def test_an_old_journal_takes_nothing_back(chat):
    chat.ask("echo one")
    before = stored(chat.page)
    old = [{**node, "content": "", "version": 1} for node in before.values()]
    head = chat.page.url.split("#")[1]
    late = {"id": head, "title": "late", "system": "", "leaf": None, "updated": 1, "stamps": {}}
    chat.page.evaluate(
        "text => { localStorage['smollm3.journal.gone'] = text }",
        json.dumps({"head": late, "nodes": old}),
    )
    chat.page.reload()
    chat.page.wait_for_selector(".markdown:has-text('You said: echo one')")
    assert stored(chat.page) == before
    assert journals(chat.page) == 0
