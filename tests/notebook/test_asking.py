"""A question of one's own in a notebook: the policy is loaded once, and again when it was trained further."""

import types

import pytest

from grpo_kit import config, notebook
from grpo_kit.notebook import asking
from grpo_kit.runs.run import Run


def test_a_question_loads_the_policy_once_and_anew_when_it_was_trained(monkeypatch, tmp_path):
    from grpo_kit.display import replies
    from grpo_kit.evaluation import ask

    loads, asked, run = [], [], Run(tmp_path, "r")
    tokenizer = types.SimpleNamespace()
    monkeypatch.setattr(ask, "load_trained", lambda *_: loads.append(1) or (len(loads), tokenizer))
    monkeypatch.setattr(ask, "ask", lambda model, *_: asked.append(model) or {})
    monkeypatch.setattr(replies, "NotebookReplies", lambda *_: types.SimpleNamespace(show=None, finish=lambda _: None))
    monkeypatch.setattr("grpo_kit.policy.chat.template_opens_thinking", lambda *_: True)
    chosen = config.load_config(["tiny"])
    for _ in range(2):
        notebook.ask(chosen, run, "What?", True)
    monkeypatch.setattr(Run, "trained_stages", lambda _: ["train"])
    monkeypatch.setattr(Run, "stages", lambda _: {"train": {"seconds": 1.0}})
    notebook.ask(chosen, run, "What?", True)
    assert asked == [1, 1, 2] and len(asking._loaded) == 1
    with pytest.raises(ValueError, match="The question is empty"):
        notebook.ask(chosen, run, " ")
    asking._loaded.clear()
