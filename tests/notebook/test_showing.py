"""What the notebooks show of a run's stages."""

import types

import pytest

from grpo_kit import notebook
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.run import Run, find_run


def test_progress_updates_one_line(monkeypatch):
    import IPython.display as display

    lines = []
    line = types.SimpleNamespace(update=lambda content: lines.append(content.data))
    monkeypatch.setattr(display, "display", lambda content, display_id: line)
    count = notebook.show_progress("trials")
    count(1, 8)
    count(2, 8, "best so far 0.50")
    assert lines == ["1 of 8 trials", "2 of 8 trials, best so far 0.50"]


@pytest.mark.parametrize(("calls", "shown"), [(0, ["the answers are there already"]), (1, ["3 of 3 answers"])])
def test_a_line_says_that_work_was_done_before(monkeypatch, calls, shown):
    import IPython
    import IPython.display as display

    lines, callbacks = [], []
    line = types.SimpleNamespace(update=lambda content: lines.append(content.data))
    monkeypatch.setattr(display, "display", lambda content, display_id: line)
    events = types.SimpleNamespace(
        register=lambda name, callback: callbacks.append(callback),
        unregister=lambda name, callback: callbacks.remove(callback),
    )
    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(events=events))
    count = notebook.show_progress("answers")
    for _ in range(calls):
        count(3, 3)
    callbacks[0](types.SimpleNamespace(success=True))
    assert lines == shown and callbacks == []


def test_a_task_of_the_users_own_environment_is_shown_with_its_own_columns(monkeypatch, capsys, tmp_path):
    run = find_run("own", tmp_path)
    monkeypatch.setattr(Run, "environments", lambda run: ["math", "rhyme"])
    kits = {"id": "a", "source": "mine.jsonl", "pass_rate": None, "prompt": [{"role": "user", "content": "q"}]}
    rows = [
        kits | {"environment": "math", "answer": "4", "question": "q"},
        kits | {"environment": "rhyme", "answer": "", "word": "cat", "like": None},
    ]
    write_lines(run.data_file("train"), rows)
    notebook.show_tasks(run)
    assert capsys.readouterr().out == "== math\nq\n\n   answer: 4\n\n== rhyme\nq\n\n   word: cat\n\n"
