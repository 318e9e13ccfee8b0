"""judge-check: the embedded policy is refused, a judge that knows passes; what training asks for."""

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from grpo_kit.config import Judge, load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate, problem_sets, screening
from grpo_kit.evaluation.judge import check
from grpo_kit.rewards.tools.audit import audit_reward
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.rewards.tools.routing import find_judge, make_verifier
from grpo_kit.runs.run import find_run
from tests.helpers.judge_server import JudgeServer, fail
from tests.helpers.settings import SMALL


def prefers_right(request, first, second):
    """Knows that in "What is 4?" the answer 4 is right."""
    wanted = re.search(r"\d+", request)[0]
    return 3 if (first == wanted) == (second == wanted) else 1 if first == wanted else 6


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = JudgeServer(prefers_right)
    yield made
    made.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(configuration, run, file of pairs): rows of math and of `chat`, which a judge rewards."""
    folder = tmp_path_factory.mktemp("judged")
    rows = [{"environment": "chat", "prompt": f"What is {number}?"} for number in range(20, 99)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"prompt": f"What is {n}?", "chosen": f"{n}", "rejected": f"{n + 1}" * (1 + n % 2)} for n in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    chosen = load_config(
        ["tiny"],
        [
            *SMALL,
            f"data.source='tiny-sums,{folder}/rows.jsonl'",
            "environments.chat.reward_funcs=[judge.py:judge_reward]",
        ],
    )
    run = find_run("r", folder / "runs")
    prepare(chosen, run)
    return chosen, run, folder / "pairs.jsonl"


def judged_by(config, model, **settings):
    return replace(config, judge=Judge(model=model, **settings))


def test_a_judge_that_knows_the_answers_passes_and_its_record_opens_the_training(prepared, server, capsys):
    config, run, pairs = prepared
    config, seen = judged_by(config, server.url), []
    result = check.check_judge(config, run, pairs, progress=lambda *counts: seen.append(counts))
    assert (result["agreement"]["value"], result["order_decides"]["value"], result["no_verdict"]) == (1.0, 0.0, 0.0)
    assert result["agreement"]["ci95"][0] > 0.8 and result["first_wins"]["value"] == 0.5
    assert result["words"][0] == "This judge may train." and seen == [(16, 20), (20, 20)]
    assert json.loads(run.judge.read_text()) == result
    judges = [find_judge(load_reward("judge.py"))]
    assert check.require_checked(config, run, []) == {}
    assert check.require_checked(config, run, judges)["judge"]["agreement"] == result["agreement"]
    assert "agrees with 100.0% of 20 known winners" in capsys.readouterr().out
    check.hand_over(config, run, judges, (None, None))
    assert judges[0].server.served_model == "judge-7b"  # the one that was measured
    for other, words in (
        (judged_by(config, f"{server.url}/v2"), rf"judge.model is {server.url}/v2, and {server.url} was measured\)"),
        (
            judged_by(config, "policy"),
            rf"judge.model is policy, .*Write judge.model={server.url} to train by that one",
        ),
        (
            judged_by(config, server.url, served_model="other"),
            r"judge.served_model is other, and judge-7b was measured",
        ),
        (judged_by(config, server.url, threshold=1.0), None),
    ):
        if words:
            with pytest.raises(ValueError, match=f"{words}.*grpo-kit rewards judge-check --run r") as error:
                check.require_checked(other, run, judges)
            named = other.judge.model != "policy"
            assert (f"--run r judge.model={other.judge.model}" in str(error.value)) == named
        else:
            check.require_checked(other, run, judges)
    assert check.check_judge(config, run, pairs)["agreement"] == result["agreement"]
    assert len(server.asked) == 40  # the second time, judge.jsonl had the verdicts


def test_a_judge_that_answers_nonsense_may_not_train(prepared, server):
    config, run, pairs = prepared
    server.prefers = lambda *texts: 99
    run.judge.unlink(missing_ok=True)
    silent = judged_by(config, server.url, concurrency=2)
    result = check.check_judge(silent, run, pairs)
    assert result["agreement"] is None and result["no_verdict"] == 1.0 and len(server.asked) == 32  # and not 40
    assert "gives no verdict on 100% of the comparisons" in result["words"][0] and not run.judge.exists()
    assert result["words"][-1] == "Pairs tried: 16 of 20. Nothing was recorded."
    assert "or the ranking not from 1 to 6" in result["words"][1]
    run.judge.write_text("an earlier record")
    result = check.check_judge(silent, run, pairs, limit=2)
    assert run.judge.read_text() == "an earlier record"
    assert result["words"][-1] == f"Pairs tried: 2 of 2. {run.judge} keeps what was measured before."
    run.judge.unlink()


def test_a_row_that_comes_200_times_is_one_pair_and_admits_no_judge(prepared, server, tmp_path):
    config, run, _ = prepared
    row = json.dumps({"prompt": "What is 4?", "chosen": "4", "rejected": "5"})
    (tmp_path / "same.jsonl").write_text(f"{row}\n" * 200)
    result = check.check_judge(judged_by(config, server.url), run, tmp_path / "same.jsonl")
    assert (result["pairs"]["count"], result["pairs"]["equal"], result["judged"]) == (1, 199, 1)
    assert result["words"][:2] == [
        "This judge may not train: it was measured on 1 pair with a known winner, and 20 are needed.",
        "199 rows repeat a pair and did not count.",
    ]


@pytest.mark.slow
def test_the_embedded_policy_knows_no_judging_and_training_is_refused(prepared):
    config, run, pairs = prepared
    run.judge.unlink(missing_ok=True)
    judges = [find_judge(load_reward("judge.py"))]
    with pytest.raises(ValueError, match="nobody has measured it. Measure it with `grpo-kit rewards judge-check"):
        check.require_checked(config, run, judges)
    result = check.check_judge(config, run, pairs)
    low, high = result["agreement"]["ci95"]
    assert low < 0.5 < high or result["agreement"]["value"] < 0.5
    assert result["order_decides"]["value"] > 0.9  # it always writes the same
    assert result["words"][-1].startswith("The policy judges itself: this is agreement with the untrained model.")
    with pytest.raises(ValueError, match="The judge may not train: it agrees with .* known winners .*judge.model"):
        check.require_checked(config, run, judges)
    edited = load_reward("judge.py")
    config = replace(config, policy=replace(config.policy, model="tiny-office"))
    with pytest.raises(ValueError, match=r"not the one that was measured \(another policy\)"):
        check.require_checked(config, run, [edited])


def test_a_damaged_record_is_named(prepared):
    config, run, _ = prepared
    run.judge.parent.mkdir(exist_ok=True)
    for text in ("", "{", "[]", '{"judge": {}}'):
        run.judge.write_text(text)
        with pytest.raises(ValueError, match=r"judge.json.* damaged: .*judge-check"):
            check.require_checked(config, run, [find_judge(load_reward("judge.py"))])
    run.judge.unlink()


def test_a_model_that_does_not_exist_is_named_as_the_judges(prepared):
    config, run, pairs = prepared
    with pytest.raises(FileNotFoundError, match="^judge.model is 'no/such'"):
        check.check_judge(judged_by(config, "no/such"), run, pairs)


def test_a_judge_of_another_folder_is_loaded_by_the_kits_loader(prepared):
    config, _, _ = prepared
    model, tokenizer = check.load_judge(judged_by(config, "tiny-office"))
    assert model.num_parameters() and tokenizer.chat_template
    shared = object(), object()
    assert check.load_judge(config, shared) is shared
    assert check.load_judge(judged_by(config, "http://host/v1"), shared) == (None, None)


def test_what_needs_right_and_wrong_refuses_a_judge(prepared):
    config, run, _ = prepared
    with pytest.raises(ValueError, match="A judge rewards the environment chat.*no pass rate"):
        screening.screen(config, run)
    with pytest.raises(ValueError, match="judge.py is a judge, which compares answers.*rewards judge-check"):
        audit_reward("judge.py")


def test_where_judges_reward_all_rows_there_is_no_accuracy(prepared, monkeypatch):
    config, run, _ = prepared
    assert not problem_sets.is_only_judged(config, run)  # there are rows of math too
    monkeypatch.setattr(type(run), "environments", lambda run: ["chat"])
    assert problem_sets.is_only_judged(config, run)
    with pytest.raises(ValueError, match="A judge rewards the environment chat.*no accuracy.*evaluation.sets"):
        evaluate.measure(config, run, "before")


def test_outside_training_a_judge_judges_nothing_and_is_recorded_by_its_file(prepared):
    config, run, _ = prepared
    verifier = make_verifier(config, run.environments())
    batch = {"environment": ["chat"] * 2, "prompts": ["What is 20?"] * 2, "answer": [None] * 2}
    assert verifier(completions=["20", "21"], **batch) == [None, None]
    judge_file = load_reward("judge.py")
    assert verifier.fingerprints()["chat"] == fingerprint(judge_file) is not None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("judge.model=''", "judge.model is empty"), ("judge.threshold=1.5", "judge.threshold is 1.5"),
        ("judge.answer_bonus=-1", "judge.answer_bonus is -1"), ("judge.batch_size=0", "judge.batch_size is 0"),
        ("judge.timeout=0", "judge.timeout is 0"), ("judge.concurrency=0", "judge.concurrency is 0"),
        ("judge.max_tokens=0", "judge.max_tokens is 0"),
        ("judge.group_answer_length_penalty_coeff=-0.5", "group_answer_length_penalty_coeff is -0.5"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        load_config(["tiny"], [setting])


def test_every_setting_reaches_the_reward():
    judge = find_judge(load_reward("judge.py"))
    settings = Judge(
        model="folder", answer_bonus=0.1, batch_size=3, top_percentile=0.5, timeout=7.0, max_tokens=9
    ).arguments()
    judge.use_policy("model", "tokenizer", **settings)
    assert (judge.model, judge.answer_bonus, judge.batch_size, judge.timeout) == ("policy", 0.1, 3, 7.0)
    assert judge.policy == ("model", "tokenizer") and judge.top_percentile == 0.5


def test_the_command_prints_the_figures_and_ends_with_1_below_the_threshold(prepared, server, monkeypatch):
    _, run, pairs = prepared
    monkeypatch.setenv("GRPO_KIT_ROOT", str(run.root))

    def call(*words):
        done = CliRunner().invoke(app, ["rewards", "judge-check", "--run", "r", "--pairs", str(pairs), *words])
        return done.exit_code, " ".join(done.output.split())

    status, output = call(f"judge.model={server.url}")
    assert status == 0 and "on 20 pairs of" in output and "agrees with the known winner 1.000" in output
    assert output.endswith(f"train --run r judge.model={server.url}")  # without it, the policy would judge
    record = run.judge.read_bytes()
    status, output = call("--limit", "1")
    assert status == 1 and "on 1 pair of" in output and "the order decides 1.000" in output
    assert "error: The judge policy may not train: it was measured on 1 pair with a known winner" in output
    assert run.judge.read_bytes() == record and "Pairs tried: 1 of 1." in output  # a glance replaces no measurement
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.faults += [fail(503)] * 8
    status, output = call(f"judge.model={server.url}", "judge.served_model=other", "--limit", "1")
    assert status == 1 and "error: The judge" in output and output.count("It answered with status 503.") == 2
    status, output = call("judge.model=ftp://x/v1")
    assert status == 2 and "The judge's address is ftp://x/v1" in output
    run.judge.unlink()
