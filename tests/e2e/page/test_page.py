"""What a person does on the chat page: asks, reads, stops, edits, looks into the glass box."""

import json
import shutil
from pathlib import Path

import pytest

from .conftest import SECONDS, Page


def test_thinking_is_folded_with_its_length_and_time(chat, mock):
    chat.ask("Explain RoPE")
    summary = chat.page.inner_text(".reasoning summary")
    assert "Thought for" in summary
    assert "56 tokens" in summary
    assert len(chat.answers) == 1  # the reasoning is not in the page until it is unfolded
    chat.page.click(".reasoning summary")
    assert "rotary embedding" in chat.page.inner_text(".reasoning .markdown")
    assert mock.asked[-1]["chat_template_kwargs"] == {"enable_thinking": True}
    figures = chat.page.inner_text(".figures")
    assert "tokens/s" in figures
    assert "/ 65,536" in chat.page.inner_text(".context")


def test_no_think_and_markdown_code_and_maths(chat, mock):
    chat.page.click("button.toggle:has-text('Think')")
    chat.ask("Explain RoPE")
    assert mock.asked[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert chat.page.locator(".reasoning").count() == 0
    assert chat.page.locator(".markdown .hljs-keyword").first.inner_text() == "def"
    assert chat.page.locator(".markdown td").first.inner_text() == "1, 2, 3, 5, ..."
    assert chat.page.locator("math[display=block] mtable").count() == 3
    # Space and brackets of formulas survive the cleaning.
    assert chat.page.locator("math mspace[width='2em']").count() == 1
    chat.page.click(".copy-code")
    assert "def rotate" in chat.page.evaluate("navigator.clipboard.readText()")


@pytest.mark.slow
def test_settings_and_system_prompt_are_sent(chat, mock):
    chat.page.keyboard.press("Alt+,")
    chat.page.fill("[name=temperature]", "0")
    chat.page.fill("[name=seed]", "7")
    chat.page.fill("[name=max_tokens]", "300")
    chat.page.fill("[name=thinking_budget]", "50")
    chat.page.fill("[name=system]", "Be brief.")
    tool = {"type": "function", "function": {"name": "weather"}}
    chat.page.fill("[name=tools]", json.dumps([tool, "def area(r: float) -> float"]))
    chat.page.keyboard.press("Escape")
    chat.ask("echo")
    body = mock.asked[-1]
    told = {name: body[name] for name in ("temperature", "seed", "max_tokens", "thinking_budget")}
    assert told == {"temperature": 0, "seed": 7, "max_tokens": 300, "thinking_budget": 50}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["tools"] == [tool]
    assert body["chat_template_kwargs"]["python_tools"] == ["def area(r: float) -> float"]
    assert "glass_box" not in body


@pytest.mark.parametrize(
    ("asked", "title", "shown"),
    [("use a tool", "weather", '"city": "Paris"'), ("the python tool", "Python", "from datetime")],
)
def test_a_tool_call_and_its_result(chat, mock, asked, title, shown):
    chat.ask(asked)
    call = chat.page.locator(".call")
    assert title in call.inner_text()
    assert shown in call.locator("code").inner_text()
    call.locator("textarea").fill("21 <b>degrees</b>")
    chat.page.click("text=Send result")
    chat.settled()
    assert call.locator(".result").inner_text() == "21 <b>degrees</b>"
    assistant, tool = mock.asked[-1]["messages"][-2:]
    assert tool == {"role": "tool", "content": "21 <b>degrees</b>", "tool_call_id": "call00001"}
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"])
    assert chat.answers[-1].startswith("The tool says 21")


def test_stop_cancels_at_the_server_and_keeps_what_came(chat, mock):
    chat.ask("slow", wait=False)
    chat.page.wait_for_selector(".markdown:has-text('word word')")
    chat.page.keyboard.press("Escape")
    chat.settled()
    assert "Stopped." in chat.page.inner_text(".assistant .note")
    assert "word word" in chat.answers[-1]
    assert mock.broken_off.wait(5)


def test_edit_branch_and_versions(chat, mock):
    chat.ask("echo one")
    chat.ask("echo two")
    assert chat.questions == ["echo one", "echo two"]
    chat.page.locator(".user").first.hover()
    chat.page.locator(".user [aria-label=Edit]").first.click()
    chat.page.fill("[aria-label='Edit your message']", "echo three")
    chat.page.press("[aria-label='Edit your message']", "Enter")
    chat.settled()
    assert chat.questions == ["echo three"]
    assert [m["content"] for m in mock.asked[-1]["messages"]] == ["echo three"]
    assert "2/2" in chat.page.inner_text(".user .versions")
    chat.page.click(".user [aria-label='Earlier version']")
    assert chat.questions == ["echo one", "echo two"]
    chat.page.locator("[aria-label='Another answer']").first.click()
    chat.settled()
    assert "2/2" in chat.page.inner_text(".assistant .versions")
    chat.page.locator("[aria-label='Branch into a new conversation']").first.click()
    chat.listed(2)
    assert chat.questions == ["echo one"]


def test_reload_keeps_the_history(chat, mock):
    chat.ask("echo one")
    before = chat.answers
    chat.page.keyboard.press("Alt+n")
    assert chat.questions == []
    chat.ask("echo other")
    chat.page.reload()
    chat.page.wait_for_selector(".bubble")
    assert chat.questions == ["echo other"]
    chat.page.click(".head:has-text('echo one')")
    chat.page.wait_for_selector(".bubble:has-text('echo one')")
    assert chat.answers == before
    chat.ask("echo again")
    assert [m["role"] for m in mock.asked[-1]["messages"]] == ["user", "assistant", "user"]
    chat.page.once("dialog", lambda dialog: dialog.accept())
    chat.page.hover(".list li.here")
    chat.page.click(".list li.here [aria-label^=Delete]")
    chat.listed(1)


@pytest.mark.slow
def test_export_and_import(chat, tmp_path):
    chat.ask("echo one")
    with chat.page.expect_download() as download:
        chat.page.click("text=Export Markdown")
    text = Path(download.value.path()).read_text()
    assert text.startswith("# echo one\n\n## You\n\necho one\n\n## smollm3-3b\n\n<details>")
    with chat.page.expect_download() as download:
        chat.page.click("text=Export JSON")
    file = tmp_path / "one.json"
    shutil.copy(download.value.path(), file)
    answers = chat.answers
    chat.page.set_input_files("input[type=file]", file)
    chat.listed(2)
    assert chat.answers == answers
    bare = json.loads(file.read_text())
    for node in bare["nodes"].values():
        for name in ("calls", "tokens", "prompt", "stats"):
            node.pop(name, None)
    file.write_text(json.dumps(bare))
    chat.page.set_input_files("input[type=file]", file)
    chat.listed(3)
    assert chat.answers == answers
    looped = json.loads(file.read_text())
    for node in looped["nodes"].values():
        node["parent"] = node["id"]
    file.write_text(json.dumps(looped))
    chat.page.set_input_files("input[type=file]", file)
    chat.page.wait_for_selector("[role=alert]:has-text('one.json was not imported: a message')")


def test_glass_box_and_a_changed_token(chat, mock):
    chat.page.keyboard.press("Alt+g")
    chat.page.keyboard.press("Alt+t")
    chat.ask("The capital?")
    assert mock.asked[-1]["glass_box"] is True
    tokens = chat.page.locator(".glass-answer .token")
    assert tokens.all_inner_texts()[3:6] == [" France", " is", " Paris"]
    assert chat.page.locator(".token.draft").count() > 0
    assert "p1" in tokens.nth(0).get_attribute("class").split()  # 42%: -ln p = 0.87
    assert "speculative" in chat.page.inner_text(".legend")
    summary = chat.page.locator(".glass-prompt summary")
    assert "from the cache" in summary.inner_text()
    summary.click()
    chat.page.locator(".prompt-token").first.wait_for()
    prompt = chat.page.locator(".prompt-token").all_inner_texts()
    assert prompt[0] == "<|im_start|>"
    assert chat.page.locator(".prompt-token.cached").count() == len(prompt) // 3
    # By keyboard: to the sixth token, into its alternatives, take the second.
    tokens.nth(0).focus()
    for _ in range(5):
        chat.page.keyboard.press("ArrowRight")
    assert "91%" in chat.page.inner_text(".details")
    chat.page.keyboard.press("Enter")
    chat.page.locator(".alternatives button:has-text('Lyon')").click()
    chat.page.wait_for_selector(".glass-answer:has-text('another way')")
    chat.settled()
    assert tokens.all_inner_texts()[3:7] == [" France", " is", " Lyon", ","]
    sent = mock.asked[-1]["prompt"]
    assert len(sent) == len(prompt) + 6
    assert "2/2" in chat.page.inner_text(".versions")
    chat.page.locator(".assistant [aria-label='Glass box']").click()
    assert chat.answers == ["The capital of France is Lyon, and the story went another way."]
    chat.page.click("[aria-label='Earlier version']")
    assert tokens.all_inner_texts()[5] == " Paris"


def test_hostile_markdown_neither_runs_nor_fetches(chat, mock):
    chat.page.keyboard.press("Alt+t")
    fetched = []
    chat.page.on("request", lambda request: fetched.append(request.url))
    chat.ask("attack")
    chat.page.wait_for_timeout(300)
    assert chat.page.evaluate("window.hacked") is None
    assert not [path for path in mock.got if "stolen" in path]
    assert [
        url for url in fetched if "/v1/" not in url and not url.endswith("/assets/icon.svg")
    ] == []
    inside = chat.page.locator(".markdown")
    assert (
        inside.locator("img, script, iframe, svg, style, [onerror], [onclick], [src]").count() == 0
    )
    links = [a.get_attribute("href") for a in inside.locator("a[href]").all()]
    assert all(link.startswith(("http://127.0.0.1", "/stolen")) for link in links)
    assert "<img src=x onerror" in inside.inner_text()  # as text
    assert "not loaded" in inside.locator(".image-link").first.inner_text()
    # The server's policy holds even where the cleaning would not.
    chat.page.evaluate("""() => {
        const box = document.createElement("div");
        box.innerHTML = `<img src="http://localhost:9/x" onerror="window.hacked=9">`;
        document.body.append(box);
    }""")
    chat.page.wait_for_timeout(200)
    assert chat.page.evaluate("window.hacked") is None
    assert any("Content Security" in error for error in chat.errors)
    chat.errors.clear()


@pytest.mark.slow
def test_busy_wrong_broken_and_gone(chat, mock):
    chat.ask("busy echo", wait=False)
    chat.page.wait_for_selector(".queued:has-text('The server is busy')")
    chat.page.wait_for_selector(".markdown:has-text('You said: busy echo')")
    chat.settled()
    chat.ask("wrong")
    assert "more than the context holds" in chat.page.inner_text(".problem")
    chat.ask("break")
    assert "connection broke" in chat.page.locator(".problem").last.inner_text()
    assert "Half an ans" in chat.answers[-1]
    chat.ask("echo after")
    told = [m["content"] for m in mock.asked[-1]["messages"]]
    assert "" not in told  # the failure without a word is not part of the conversation
    assert "Half an ans" in told
    chat.page.route("**/v1/chat/completions", lambda route: route.abort())
    chat.ask("anyone?")
    assert "does not answer" in chat.page.locator(".problem").last.inner_text()


@pytest.mark.slow
def test_a_server_with_a_key(context, mock):
    mock.key = "k" * 16
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(mock.url)
    page.click("text=Enter the key")
    page.fill("[name=key]", mock.key)
    page.press("[name=key]", "Tab")
    page.wait_for_selector(".banner", state="detached")
    page.keyboard.press("Escape")
    page.click(".empty button >> nth=0")
    page.wait_for_selector(".assistant .figures")


def test_phone_width(browser, mock):
    context = browser.new_context(
        viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True
    )
    chat = Page(context.new_page(), mock.url)
    chat.ask("Explain how rotary position embeddings work in SmolLM3, please")
    wide = chat.page.evaluate("document.documentElement.scrollWidth")
    assert wide == 390
    for selector in (".bubble", ".composer textarea", ".send", ".markdown figure.code", "math"):
        box = chat.page.locator(selector).first.bounding_box()
        assert box["x"] >= 0
        assert selector == "math" or box["x"] + box["width"] <= 390
    assert not chat.page.is_visible(".list")
    chat.page.tap("button[aria-label=Conversations]")
    chat.page.wait_for_selector(".list.open")
    chat.page.tap("text=New conversation")
    chat.page.wait_for_selector(".list:not(.open)", state="attached")
    assert chat.questions == []
    assert chat.errors == []
    context.close()


@pytest.mark.slow
def test_keyboard_and_screen_reader(chat):
    page = chat.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.press("Alt+/")
    page.wait_for_selector("dialog[open] kbd")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    chat.ask("echo hello")
    said = page.locator("[role=status][aria-live=polite]")
    page.wait_for_selector("[role=status]:has-text('You said: echo hello')", state="attached")
    assert said.count() == 1
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, select")]
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.closest("label")))
        .map((e) => e.outerHTML)""")
    assert unnamed == []


@pytest.mark.slow
def test_light_and_dark(browser, mock):
    for scheme, dark in (("light", False), ("dark", True)):
        context = browser.new_context(color_scheme=scheme)
        page = Page(context.new_page(), mock.url).page
        colour = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        assert (page.evaluate(colour) < 128) is dark
        page.keyboard.press("Alt+,")
        page.select_option("[name=theme]", "light" if dark else "dark")
        assert (page.evaluate(colour) < 128) is not dark
        context.close()


def test_the_bundle_names_its_licences(built):
    text = (built / "assets" / "licences.txt").read_text()
    for name in ("preact", "markdown-it", "dompurify", "highlight.js", "temml", "noto-sans-math"):
        assert name in text
    [file] = (built / "assets").glob("app-*.js")
    script = file.read_text()
    assert "eval(" not in script.replace(".eval(", "")
    assert "new Function" not in script
    assert len(script) < 600_000


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(chat):
    urls = []
    chat.page.on("request", lambda request: urls.append(request.url))
    chat.page.reload()
    chat.page.wait_for_selector(".empty button:not([disabled])")
    chat.page.wait_for_timeout(200)
    origin = chat.page.url.split("/#")[0].rstrip("/")
    assert urls
    assert all(url.startswith(origin) for url in urls)
