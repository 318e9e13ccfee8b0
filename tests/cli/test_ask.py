"""`grpo-kit ask` as a user types it."""

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from grpo_kit.policy.generate import Sample


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ask(*words):
    result = CliRunner().invoke(app, ["ask", *words])
    return result.exit_code, result.output


@pytest.mark.slow
def test_an_untrained_run_answers_alone_and_says_what_is_missing(tmp_path):
    status, output = ask("What is 47 + 38?", "-c", "tiny", "--run", "first", "evaluation.temperature=0")
    assert status == 0 and "untrained" in output and "boxed{" in output and "tokens, ended by itself" in output
    assert "Run 'first' has no trained policy yet." in output
    assert "data -c tiny --run first evaluation.temperature=0" in " ".join(output.split())
    assert not list(tmp_path.iterdir())  # asking writes nothing


@pytest.mark.slow
def test_a_trained_run_answers_twice(trained, monkeypatch):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(trained[1].path.parent))
    status, output = ask("What is 47 + 38?", "--run", "small")
    assert status == 0 and output.count("tokens,") == 2 and "no trained policy" not in output


def test_words_are_a_question_wherever_the_settings_stand(monkeypatch):
    asked = []
    monkeypatch.setattr("grpo_kit.evaluation.ask.load_trained", lambda config, run: ("model", "tokenizer"))
    monkeypatch.setattr("grpo_kit.policy.chat.template_opens_thinking", lambda *_: True)
    monkeypatch.setattr(
        "grpo_kit.evaluation.ask.ask", lambda *told: asked.append(told) or {"trained": Sample("", 1, True)}
    )
    assert ask("evaluation.temperature=0", "what", "is", "1+1=", "x.y", "-c", "tiny")[0] == 0
    assert asked[0][3] == "what is 1+1= x.y" and asked[0][2].evaluation.temperature == 0


def test_without_thinking_the_whole_reply_is_the_answer():
    status, output = ask("What is 47 + 38?", "--no-thinking", "evaluation.temperature=0")
    assert status == 0 and "tokens," in output


@pytest.mark.slow
def test_a_budget_cuts_the_thought():
    status, output = ask("What is 47 + 38?", "--budget", "4", "evaluation.temperature=0")
    assert status == 0 and "boxed{" in output and "looks like" not in output


def test_a_budget_that_cannot_be_kept_is_a_mistake_of_the_command():
    status, output = ask("What is 47 + 38?", "--budget", "4", "--no-thinking")
    assert status == 2 and "with --no-thinking there is none" in output
    assert ask("What is 47 + 38?", "--budget", "0")[0] == 2
    status, output = ask("What is 47 + 38?", "--budget", "512")
    assert status == 2 and "none for the answer" in " ".join(output.split())


@pytest.mark.slow
@pytest.mark.parametrize("words", [["policy.model=other"], ["-c", "t4-4b"]])
def test_an_adapter_is_not_put_on_another_model(trained, monkeypatch, words):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(trained[1].path.parent))
    status, output = ask("What is 47 + 38?", "--run", "small", *words)
    assert status == 2 and "adapter of run 'small' was trained on 'tiny', the only model" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "The question is empty"),
        (["evaluation.temperature=0"], "The question is empty"),
        ([" "], "The question is empty"),
        (["What is 1 + 1?", "evaluation.temprature=0"], "evaluation.temperature"),
        (["What is 1 + 1?", "--run", "mistyped"], "There is no run 'mistyped'"),
    ],
)
def test_a_wrong_call_is_status_2(words, sentence):
    status, output = ask(*words)
    assert status == 2 and sentence in output
