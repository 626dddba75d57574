"""The page of a run that is going on: what it shows, whom it answers."""

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from smollm3.report import watch
from smollm3.report.watch import Watch, watched
from smollm3.train.metrics import STEPS, MetricsLog

TRAIN = {"kind": "train", "mixture": {"mine": 1}, "loss": "assistant"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run at step 20 of 50, two seconds each."""
    monkeypatch.setattr(watch, "SHARE", float("inf"))  # each look makes the page anew
    recipe = {"stages": {"sft": TRAIN, "compare": {"kind": "eval", "claims": []}}}
    content = {"name": "mine", "recipe": recipe, "order": ["sft", "compare"], "final": "sft"}
    (tmp_path / "run.json").write_text(json.dumps(content))
    work = tmp_path / ".work/sft"
    work.mkdir(parents=True)
    with MetricsLog(work / "metrics.jsonl", 0, 50) as log:
        for step in range(1, 21):
            row = {"step": step, "loss": 3 / step, "lr": 1e-3, "seconds": 2.0, "skipped": False}
            log.write(row)
    assert (work / STEPS).exists()
    return tmp_path


def get(url, path="/", **headers):
    connection = HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_curves_and_the_time_left(run):
    with watched(run) as url:
        status, page = get(url)
        assert status == 200
        assert "at step 20 of 50, about 1m 00s left" in page
        assert "Loss, nats per token" in page
        assert '<meta http-equiv="refresh"' in page
        with (run / ".work/sft/metrics.jsonl").open("a") as file:
            file.write(
                '{"step": 21, "loss": 1, "lr": 1e-3, "seconds": 2.0, "skipped": false}\n{"st'
            )
        assert "at step 21 of 50" in get(url)[1]
    with pytest.raises(OSError):
        get(url)


def test_it_only_reads(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with watched(run) as url:
        get(url)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/", "evil.example", 403), ("/", "127.0.0.1:1", 403), ("/../run.json", None, 404)],
)
def test_it_answers_this_computer_and_one_page(run, path, host, status):
    with watched(run) as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        assert get(url, path, **({"Host": host} if host else {}))[0] == status


def test_before_the_run_and_while_a_folder_is_renamed(run):
    with watched(run) as url:
        page = get(url)[1]
        (run / "run.json").rename(run / "elsewhere")
        assert get(url)[1] == page
    with watched(run) as url:
        assert "The run has not begun" in get(url)[1]


def test_a_page_is_not_made_for_every_look(run, monkeypatch):
    monkeypatch.setattr(watch, "SHARE", 1e-9)
    with watched(run) as url:
        page = get(url)[1]
        (run / ".work/sft/metrics.jsonl").write_text("")
        assert get(url)[1] == page


def test_two_watch_at_once(run):
    with Watch(run) as one, Watch(run) as two:
        assert one.server_port != two.server_port
