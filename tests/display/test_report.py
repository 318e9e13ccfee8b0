"""A run as a page and a picture: self-contained, without scripts, also for an interrupted run."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from grpo_kit.display import report
from grpo_kit.evaluation.compare import compare
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def copied(trained, tmp_path):
    run = find_run("small", tmp_path)
    shutil.copytree(trained[1].path, run.path)
    return run


@pytest.mark.slow
def test_the_page_loads_nothing_from_the_network(copied):
    report.save_report(copied)
    page = Reader(copied.page.read_text())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "a"})
    assert not [name for _, attrs in page.tags for name in attrs if name == "href" or name.startswith("on")]
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 7 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert re.search(r"url\(|@import", copied.page.read_text()) is None
    assert "default-src 'none'" in copied.page.read_text()


@pytest.mark.slow
def test_the_page_shows_figures_charts_and_completions(copied):
    page = Reader(report.render_page(copied))
    assert "4 of 4" in page.text and "accuracy, test before" in page.text
    charts = [attrs for tag, attrs in page.tags if tag == "img"]  # one for each panel, so that a phone stacks them
    chart = next(chart for chart in charts if chart["alt"] == "Charts: Held-out accuracy")
    assert b"Held-out accuracy" in base64.b64decode(chart["src"].split(",")[1])
    assert re.findall(r"Step (\d+)", page.text) == ["1", "2", "3", "4"]
    assert len([1 for tag, attrs in page.tags if attrs.get("class") == "completion"]) == 64
    assert len([1 for tag, _ in page.tags if tag == "summary"]) == 1 + 4 + 64  # settings, steps, thinking
    assert [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs] == []
    assert "time left" not in page.text


@pytest.mark.slow
def test_the_page_says_what_was_trained_when_and_with_what(copied, far_east):
    notes = json.loads(copied.notes.read_text())
    record = notes["stages"]["train"]
    record["finished"], record["seconds"] = "2026-11-29T19:19:25.152+00:00", 165.4
    copied.notes.write_text(json.dumps(notes))
    versions = record["environment"]["packages"]
    text = " ".join(Reader(report.render_page(copied)).text.split())
    assert "modeltiny trained2026-11-30 03:19 CST, in 3 minutes machine" in text
    assert f"transformers {versions['transformers']}, trl {versions['trl']}" in text
    assert "Settings policy: model: tiny" in text and "learning_rate: " in text


@pytest.mark.slow
def test_the_page_says_whether_the_difference_is_real(copied):
    comparison = compare(copied)
    assert comparison["words"] in Reader(report.render_page(copied)).text
    comparison["before"]["pass@1"] = 0.999  # measured again since
    (copied.evaluation / "report.json").write_text(json.dumps(comparison))
    assert "are not compared yet; grpo-kit evaluate does it" in Reader(report.render_page(copied)).text
    (copied.evaluation / "after.json").unlink()
    assert "Accuracy after training is not measured yet" in Reader(report.render_page(copied)).text


@pytest.mark.slow
def test_alarms_are_on_the_page_as_text(copied):
    rows = read_lines(copied.metrics)
    rows[-1]["alarms"] = ["87 % of completions are <cut>: use `grpo-kit screen`, or `<stop>`."]
    write_lines(copied.metrics, rows)
    assert (
        "step 4: 87 % of completions are &lt;cut&gt;: use <code>grpo-kit screen</code>, or <code>&lt;stop&gt;</code>."
        in report.render_page(copied)
    )


@pytest.mark.slow
def test_the_picture_is_a_png_of_every_panel(copied):
    report.save_report(copied)
    assert copied.picture.read_bytes().startswith(b"\x89PNG") and copied.picture.stat().st_size > 10_000
    axes = report.draw_report(copied).axes
    assert [axis.get_title(loc="left") for axis in axes][:3] == [
        "Reward",
        "Held-out accuracy",
        "Groups with a gradient",
    ]
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["test split, before", "test split, after"]


@pytest.mark.slow
def test_missing_measurements_are_left_out_of_the_page(copied):
    (copied.evaluation / "after.json").unlink()
    assert "accuracy, test after" not in report.render_page(copied)


@pytest.mark.slow
def test_a_run_that_was_cut_short_has_a_page(copied):
    notes = json.loads(copied.notes.read_text())
    del notes["stages"]["train"]
    copied.notes.write_text(json.dumps(notes))
    copied.completions.unlink()
    lines = copied.metrics.read_text().splitlines(keepends=True)
    copied.metrics.write_text("".join(lines[:2]) + lines[2][:50])  # killed in the middle of a line
    text = Reader(report.render_page(copied)).text
    assert "2 of 4" in text and "not finished; last step 20" in text and "Settings of the last finished stage" in text


def test_an_untrained_run_has_no_page_and_no_picture(tmp_path):
    run = find_run("r", tmp_path)
    for make in (report.render_page, report.draw_report):
        with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
            make(run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_long_run_is_shown_at_a_few_steps(copied):
    few = read_lines(copied.completions)[:64]
    write_lines(copied.completions, [line | {"step": step} for step in range(1, 300) for line in few[:8]])
    assert re.findall(r"Step (\d+)", Reader(report.render_page(copied)).text) == ["1", "75", "150", "225", "299"]


def test_each_training_of_a_run_has_its_charts(copied):
    rows = [{"step": i + 1, "seconds": i, "loss": 2.0, "mean_token_accuracy": 0.5} for i in range(3)]
    copied.stage_files("sft").folder.mkdir()
    write_lines(copied.stage_files("sft").metrics, rows)
    assert list(report.read_trainings(copied)) == ["sft", "train"]
    panels = [panel.title for panel in report._build_all_panels(copied, report.read_trainings(copied))]
    assert panels[:3] == ["SFT: Loss of the texts", "SFT: Right tokens", "GRPO: Reward"]
    assert panels.count("GRPO: Held-out accuracy") == 1 and "SFT: Held-out accuracy" not in panels


def test_steps_after_the_finished_training_are_left_out_on_request(copied, monkeypatch):
    monkeypatch.setattr(report.charts, "draw_panels", lambda panels, title: panels)
    before = report.draw_report(copied, finished=True)
    assert before == report.draw_report(copied)
    rows = read_lines(copied.metrics)
    later = [rows[-1] | {"step": step, "reward": 9.0} for step in (5, 6)]
    write_lines(copied.metrics, rows + later)  # of a training that goes on
    write_lines(copied.stage_files("prefer").metrics, [{"step": 1, "seconds": 1.0, "rewards/margins": 1.0}])
    assert report.draw_report(copied, finished=True) == before != report.draw_report(copied)


def test_a_run_that_has_only_learned_texts_has_a_page(tmp_path):
    run = find_run("texts", tmp_path)
    rows = [{"step": i + 1, "seconds": i, "loss": 2.0, "mean_token_accuracy": 0.5} for i in range(3)]
    run.stage_files("sft").folder.mkdir(parents=True)
    write_lines(run.stage_files("sft").metrics, rows)
    page = Reader(report.render_page(run))
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alts == ["Charts: Loss of the texts", "Charts: Right tokens"] and "2.000" in page.text
