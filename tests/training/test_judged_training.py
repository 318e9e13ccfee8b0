"""GRPO with a judge among its rewards: what it needs, what it records, and that it resumes to the same bytes."""

import json
import signal
import time
from dataclasses import replace

import pytest

from grpo_kit.config import Judge, load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation.judge.check import describe_judge
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import reproduce, train
from grpo_kit.tuning import tune
from tests.helpers.judge_server import JudgeServer, say
from tests.helpers.processes import start as start_python
from tests.helpers.settings import SMALL
from tests.training.test_stage import figures

SHORT = [
    "grpo.max_steps=4", "grpo.save_steps=1", "grpo.num_generations=4", "grpo.per_device_train_batch_size=8",
    "grpo.eval_steps=0", "data.limit=60", "data.test_size=10", "data.val_size=4", "grpo.reward_funcs=[math_answer.py]",
    "grpo.reward_weights=[1.0]", "environments.chat.reward_funcs=[judge.py]", "run.report_to=[]",
]  # fmt: skip
KILLED = """
from grpo_kit.config import load_config
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
train.train(load_config(["tiny"], {settings}), find_run("r", {root!r}), [math_reward])
"""


def settings_of(folder, *more):
    return [*SMALL, *SHORT, f"data.source='tiny-sums,{folder}/rows.jsonl'", *more]


def prepared(folder, *more):
    folder.mkdir(exist_ok=True)
    rows = [{"environment": "chat", "prompt": f"What is {number} + {number % 9}?"} for number in range(20, 60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = load_config(["tiny"], settings_of(folder, *more))
    run = find_run("r", folder / "runs")
    prepare(chosen, run)
    return chosen, run


def write_record(config, run):
    """The record of a judge that agreed with 90 of 100 known winners."""
    share = {"value": 0.9, "ci95": [0.82, 0.95]}
    shares = dict.fromkeys(("agreement", "order_decides", "first_wins", "longer_wins", "longer_is_right"), share)
    judge = describe_judge(config, "judge.py") | {"served_model": None}
    pairs = {"count": 100, "source": "test", "sha256": "0" * 64}
    record = {"judge": judge, "pairs": pairs, **shares, "no_verdict": 0.0, "judged": 100, "words": []}
    run.evaluation.mkdir(exist_ok=True)
    run.judge.write_text(json.dumps(record))


def judged(run):
    return [line for line in read_lines(run.completions) if "judge_reward" in line["rewards"]]


@pytest.mark.slow
def test_a_run_that_its_own_policy_judges_is_killed_and_ends_with_the_same_bytes(tmp_path, capfd):
    chosen, alone = prepared(tmp_path / "alone")
    with pytest.raises(ValueError, match="nobody has measured it"):
        train.train(chosen, alone, [math_reward])
    write_record(chosen, alone)
    train.train(chosen, alone, [math_reward])
    assert "agrees with 90.0% of 100 known winners (95 % 82.0% to 95.0%). The policy judges" in capfd.readouterr().out
    rows = figures(alone)
    assert all(row["grad_norm"] > 0 and "judge/no_verdict" in row for row in rows) and len(rows) == 4
    paid = [line["rewards"]["judge_reward"] for line in judged(alone)]
    assert paid and len(set(paid)) > len(paid) / 2  # it tells completions apart
    record = alone.stages()["train"]
    assert record["settings"]["judge"]["model"] == "policy" and record["judge"]["agreement"]["value"] == 0.9
    chosen, run = prepared(tmp_path / "killed")
    write_record(chosen, run)
    command = KILLED.format(settings=settings_of(tmp_path / "killed"), root=str(run.root))
    child = start_python(["-W", "ignore", "-c", command])
    while child.poll() is None and not (run.path / "checkpoints/step_1").is_dir():
        time.sleep(0.02)
    child.kill()
    output, _ = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, output
    other = replace(chosen, judge=Judge(answer_bonus=0.0))
    with pytest.raises(ValueError, match="judge.answer_bonus"):  # other rewards than the training began with
        train.train(other, run, [math_reward])
    train.train(chosen, run, [math_reward])
    assert figures(run) == rows and hash_of(run.adapter) == hash_of(alone.adapter)
    assert run.completions.read_bytes() == alone.completions.read_bytes()


@pytest.mark.slow
def test_a_server_judges_groups_of_its_environment_and_a_group_without_a_verdict_teaches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = JudgeServer(lambda request, first, second: 1 if first < second else 6)
    chosen, run = prepared(tmp_path / "served", f"judge.model={server.url}", "judge.concurrency=1", "grpo.max_steps=2")
    write_record(chosen, run)
    server.faults.append(say("no idea"))
    with pytest.warns(UserWarning, match='A reply without a verdict ends so: "no idea"'):
        train.train(chosen, run, [math_reward])
    lines = [line for line in read_lines(run.completions) if line["environment"] == "chat"]
    silent = [line for line in lines if not line["rewards"]]
    assert len(silent) == 4 and len({(line["step"], line["prompt"]) for line in silent}) == 1
    assert len(lines) > 4 and all("judge_reward" in line["rewards"] for line in lines if line not in silent)
    rows = read_lines(run.metrics)
    assert rows[0]["judge/no_verdict"] == 0.5 and rows[1]["judge/no_verdict"] == 0.0
    assert rows[1]["environments/chat/right"] is None  # a judge knows better and worse
    assert len(read_lines(run.verdicts)) == len({body["messages"][0]["content"] for body in server.asked}) - 1
    asked = len(server.asked)
    again, differences = reproduce.reproduce(run)
    # Of the first step only the comparison that had no verdict is asked for again, and has one now.
    assert server.asked[asked] == server.asked[0] and again.judge.read_text() == run.judge.read_text()
    assert differences and all("metrics differ" in text or "adapter" in text for text in differences)
    server.close()


def test_a_search_needs_the_record_too(tmp_path):
    chosen, run = prepared(tmp_path / "searched")
    with pytest.raises(ValueError, match="nobody has measured it"):
        tune.tune(chosen, run, "grpo.learning_rate=[0.001,0.01]", trials=1, steps=1)
    write_record(chosen, run)
    trial = tune.Trial(run, 0)
    assert (trial.judge, trial.verdicts) == (run.judge, run.verdicts)


def test_a_judge_of_math_is_refused(tmp_path):
    chosen, run = prepared(tmp_path / "math")
    with pytest.raises(ValueError, match="grpo.reward_funcs names a judge.*environments.NAME.reward_funcs"):
        train.train(chosen, run, [load_reward("judge.py")])
