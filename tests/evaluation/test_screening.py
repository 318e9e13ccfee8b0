"""Pass rates are measured in rounds, stopped early, resumed after a kill, applied as a band, and read by training."""

import contextlib
import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from grpo_kit import config
from grpo_kit.cli.main import app
from grpo_kit.config import Screening
from grpo_kit.data import curriculum
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import screening, screening_rounds
from grpo_kit.policy.generate import Sample
from grpo_kit.runs.files import hash_of, write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.processes import start as start_python
from tests.helpers.settings import SMALL

FEW = ["data.val_size=0", "data.test_size=1", "evaluation.batch_size=12"]


def right_reward(completions, **columns):
    """Stands in for a verifier: `right` is right; a gold of `none` cannot be used."""
    pairs = zip(completions, columns["answer"], strict=True)
    return [None if gold == "none" else float(turns[0]["content"] == "right") for turns, gold in pairs]


def wrong_reward(completions, **columns):
    return [0.0] * len(completions)


@pytest.fixture
def drawn(tiny_policy, monkeypatch):
    """Replaces the sampler: a prompt `0.5 3` is answered right with chance 0.5. Returns the list of sampled batches."""
    batches = []

    def sample(model, tokenizer, prompts, sampling, seed, enable_thinking=True):
        rng = random.Random(seed)
        chances = [float(turns[-1]["content"].split()[0]) for turns in prompts]
        batches.append([turns[-1]["content"] for turns in prompts])
        return [Sample("right" if rng.random() < chance else "wrong", 1, True) for chance in chances]

    monkeypatch.setattr(screening_rounds, "sample_completions", sample)
    monkeypatch.setattr(screening_rounds, "load_policy", lambda policy: tiny_policy)
    return batches


def prepared(tmp_path, chances, *overrides, answers=None, name="r"):
    """(config, run) whose training rows are right with these chances; a row more is there, and one is held out."""
    path = tmp_path / f"{name}.jsonl"
    lines = [
        {"prompt": f"{c} {i}", "answer": (answers or {}).get(i, "1")} for i, c in enumerate([*chances, chances[-1]])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = config.load_config(["tiny"], [f"data.source={path}", *FEW, *overrides])
    run = find_run(name, tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


def chance_of(row):
    return float(row["prompt"][-1]["content"].split()[0])


def by_id(run):
    return {line["id"]: line for line in read_lines(run.screening)[1:]}


@pytest.mark.slow
def test_a_prompt_whose_pass_rate_is_decided_is_not_sampled_again(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.5] * 30 + [0.0] * 6 + [1.0] * 4)
    report = screening.screen(chosen, run, right_reward)
    for line in by_id(run).values():
        inside = line["low"] >= 0.1 and line["high"] <= 0.9
        assert line["decided"] == inside and (inside or line["samples"] == 16)
        assert line["pass_rate"] == line["right"] / line["tried"] and line["samples"] == line["tried"] <= 16
    assert any(line["samples"] == 4 for line in by_id(run).values())
    assert report["samples"] == sum(map(len, drawn)) < 0.7 * report["at_most"] and report["at_most"] == 16 * 40
    assert all(len(batch) <= 12 for batch in drawn) and sum(len(batch) == 12 for batch in drawn) > len(drawn) - 5
    assert sum(report["histogram"]) == 40 and report["undecided"] >= 9


@pytest.mark.slow
def test_a_confidence_interval_outside_the_band_decides_a_prompt_early(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.0, 1.0, 0.5] * 4, "screening.num_generations=100", "data.pass_rate=[0.3,0.7]")
    screening.screen(chosen, run, right_reward)
    rows, lines = read_lines(run.data_file("train")), by_id(run)
    samples = {
        chance: {lines[row["id"]]["samples"] for row in rows if chance_of(row) == chance} for chance in (0.0, 1.0)
    }
    assert samples == {0.0: {12}, 1.0: {12}}  # Wilson's upper bound for 0 of 8 is 0.32, for 0 of 12 0.24


@pytest.mark.slow
def test_prompts_inside_the_band_are_kept_and_the_others_get_a_reason(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.5] * 10 + [0.0] * 3 + [1.0] * 2 + [0.5], answers={15: "none"})
    report = screening.screen(chosen, run, right_reward)
    kept, left = read_lines(run.screened), read_lines(run.left_out)
    reasons = [row["reason"] for row in left]
    assert (report["kept"], report["too hard"], report["too easy"], report["gold cannot be used"]) == (
        len(kept), reasons.count("too hard"), reasons.count("too easy"), reasons.count("gold cannot be used"),
    )  # fmt: skip
    assert len(kept) + len(left) == 16
    for row in kept:
        assert 0.1 <= row["pass_rate"] <= 0.9 and row["pass_rate"] == by_id(run)[row["id"]]["pass_rate"]
        assert list(row) == list(left[0])[: len(row)] and chance_of(row) == 0.5
    assert {(chance_of(row), row["reason"]) for row in left} >= {(0.0, "too hard"), (1.0, "too easy")}
    assert report["sources"] == {"r.jsonl": [len(kept), len(kept) + len(left)]}


@pytest.mark.slow
def test_a_prompt_with_an_unusable_gold_is_sampled_once_and_has_no_pass_rate(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.5] * 8, answers=dict.fromkeys(range(3), "none"))
    report = screening.screen(chosen, run, right_reward)
    lines = [line for line in by_id(run).values() if line["pass_rate"] is None]
    assert report["gold cannot be used"] == len(lines) >= 2
    assert all((line["samples"], line["tried"], line["low"], line["high"]) == (4, 0, 0.0, 1.0) for line in lines)


@pytest.mark.slow
def test_the_kept_rows_are_in_the_order_of_a_curriculum(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.3, 0.5, 0.7] * 10, "screening.sigma=0")
    screening.screen(chosen, run, right_reward)
    rates = [row["pass_rate"] for row in read_lines(run.screened)]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


@pytest.mark.slow
def test_a_screening_file_cut_anywhere_resumes_to_the_same_bytes(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.0, 0.3, 0.5, 1.0] * 5)
    screening.screen(chosen, run, right_reward)
    samples, kept = run.screening.read_bytes(), run.screened.read_bytes()
    batch_count = len(drawn)
    ends = [i + 1 for i, byte in enumerate(samples) if byte == 10]
    cuts = {
        1,
        50,
        len(samples) - 1,
        *ends[:3],
        *ends[3::7],
        *(end - 1 for end in ends[5::9]),
        *(end + 20 for end in ends[2:-1:8]),
    }
    for cut in sorted(cuts):
        run.screening.write_bytes(samples[:cut])
        drawn.clear()
        screening.screen(chosen, run, right_reward)
        assert (run.screening.read_bytes(), run.screened.read_bytes()) == (samples, kept), cut
        assert (len(drawn) == batch_count) == (cut < ends[3]), "whole rounds are not drawn again"


@pytest.mark.slow
def test_a_killed_screening_process_resumes_to_the_same_bytes(tmp_path, math_reward):
    """SIGKILL to a process that screens on the embedded policy; the file is then one that an undisturbed run began."""
    chosen = config.load_config(["tiny"], [*SMALL[1:], "data.limit=104", "evaluation.batch_size=32"])
    runs = {name: find_run(name, tmp_path / "runs") for name in ("killed", "undisturbed")}
    for run in runs.values():
        prepare(chosen, run)
    code = (
        "import sys\nfrom grpo_kit.config import load_config\nfrom grpo_kit.evaluation.screening import screen\n"
        "from grpo_kit.runs.run import find_run\n"
        "run = find_run('killed', sys.argv[1])\nscreen(load_config([str(run.config)]), run)\n"
    )
    process = start_python(["-c", code, tmp_path / "runs"])
    while process.poll() is None and (
        not runs["killed"].screening.is_file() or runs["killed"].screening.read_bytes().count(b"\n") < 3
    ):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = runs["killed"].screening.read_bytes()
    assert left.count(b"\n") >= 3 and "screen" not in runs["killed"].stages()
    screening.screen(chosen, runs["undisturbed"], math_reward)
    undisturbed = runs["undisturbed"].screening.read_bytes()
    assert undisturbed.startswith(left[: left.rfind(b"\n") + 1]) and len(left) < len(undisturbed)
    screening.screen(chosen, runs["killed"], math_reward)
    assert runs["killed"].screening.read_bytes() == undisturbed
    assert runs["killed"].screened.read_bytes() == runs["undisturbed"].screened.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "verifier", "message"),
    [
        (["policy.revision=other"], right_reward, r"policy\.revision was None, now other"),
        (["grpo.temperature=0.7"], right_reward, r"grpo\.temperature was 1\.0, now 0\.7"),
        (["grpo.max_completion_length=9"], right_reward, r"max_completion_length was 40, now 9"),
        ([], wrong_reward, "the verifier has changed"),
    ],
)
def test_samples_made_with_different_settings_are_refused(tmp_path, drawn, monkeypatch, overrides, verifier, message):
    monkeypatch.setattr(screening, "describe_verifier", lambda reward: reward.__name__)
    chosen, run = prepared(tmp_path, [0.5] * 12)
    screening.screen(chosen, run, right_reward)
    write_text(run.notes, json.dumps({"stages": {"data": run.stages()["data"]}}))  # as if it had been cut off
    before, drawn[:] = run.screening.read_bytes(), []
    other = config.load_config([str(run.config)], overrides)
    with pytest.raises(ValueError, match=f"lines that were made with different settings .*{message}.*--force"):
        screening.screen(other, run, verifier)
    assert run.screening.read_bytes() == before and not drawn
    with contextlib.suppress(RuntimeError):  # wrong_reward leaves nothing to keep
        screening.screen(replace(other, run=replace(other.run, force=True)), run, verifier)
    assert drawn and before.split(b"\n")[0] not in run.screening.read_bytes()


def test_a_screened_run_is_not_screened_again(tmp_path, drawn, monkeypatch):
    chosen, run = prepared(tmp_path, [0.5] * 12 + [0.0] * 4)
    first = screening.screen(chosen, run, right_reward)
    monkeypatch.setattr(screening_rounds, "sample_completions", lambda *_: pytest.fail("sampled again"))
    assert screening.screen(chosen, run, right_reward) == first


@pytest.mark.slow
def test_another_band_is_applied_to_the_existing_samples(tmp_path, drawn):
    """Only prompts that the new band leaves undecided are sampled again."""
    chosen, run = prepared(tmp_path, [0.3, 0.5] * 10 + [1.0] * 4, "screening.num_generations=8")
    screening.screen(chosen, run, right_reward)
    before, drawn[:] = run.screening.read_bytes(), []
    other = replace(chosen, data=replace(chosen.data, pass_rate=[0.0, 1.0]))
    with pytest.raises(ValueError, match=r"data\.pass_rate was \[0\.1, 0\.9\], now \[0\.0, 1\.0\].*--force"):
        screening.screen(other, run, right_reward)
    report = screening.screen(replace(other, run=replace(other.run, force=True)), run, right_reward)
    assert not drawn and run.screening.read_bytes() == before and report["kept"] == report["prompts"]
    narrow = replace(chosen, data=replace(chosen.data, pass_rate=[0.4, 0.6]), run=replace(chosen.run, force=True))
    screening.screen(narrow, run, right_reward)
    assert drawn and run.screening.read_bytes().startswith(before)
    assert all(line["decided"] or line["samples"] == 8 for line in by_id(run).values() if line["samples"] > 4)


def test_when_nothing_is_kept_the_samples_stay_and_no_stage_is_done(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.0] * 5)
    with pytest.raises(RuntimeError, match=r"None of 5 prompts .*\(5 too hard, 0 too easy.*Widen the band"):
        screening.screen(chosen, run, right_reward)
    assert not run.screened.exists() and not run.left_out.exists() and "screen" not in run.stages()
    assert len(by_id(run)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["<html>", "3", "{}", '{"id": "x"}', '{"of": 3'])
@pytest.mark.parametrize("line", [1, 3])
def test_a_damaged_file_is_named_with_its_line(tmp_path, drawn, spoilt, line):
    chosen, run = prepared(tmp_path, [0.5] * 6)
    screening.screen(chosen, run, right_reward)
    lines = run.screening.read_text().split("\n")
    lines[line - 1] = spoilt
    run.screening.write_text("\n".join(lines))
    before = run.screening.read_bytes()
    with pytest.raises(ValueError, match=rf"screening\.jsonl, line {line}, is damaged: .*\. Remove the lines") as error:
        screening.screen(chosen, run, right_reward)
    assert "\n" not in str(error.value) and run.screening.read_bytes() == before


def test_a_prompt_is_screened_within_the_budget_that_training_has(tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path, [0.5] * 3, "policy.thinking_budget=6", *FEW, "screening.num_generations=2")
    asked = []

    def sample(*args, budgets):
        asked.append(budgets)
        return [Sample(["right", "wrong"][i % 2], 1, True) for i in range(len(budgets))]

    monkeypatch.setattr(screening_rounds, "sample_completions", sample)
    assert screening.screen(chosen, run, right_reward)["kept"] == 3
    assert asked and {budget for budgets in asked for budget in budgets} == {6}


def test_screening_without_data_names_the_missing_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="`grpo-kit data` first"):
        screening.screen(config.load_config(["tiny"]), find_run("r", tmp_path), right_reward)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_row_with_thinking_off_is_sampled_with_thinking_off(tmp_path, math_reward):
    overrides = ["data.limit=100", "data.no_thinking=0.5", "data.pass_rate=[0,1]"]
    chosen = config.load_config(["tiny"], [*SMALL, *overrides])
    run = find_run("r", tmp_path)
    prepare(chosen, run)
    seen = []

    def watching_reward(completions, prompt_opened_think, enable_thinking, **columns):
        seen.extend(zip((c[0]["content"] for c in completions), prompt_opened_think, enable_thinking, strict=True))
        return math_reward(completions, prompt_opened_think=prompt_opened_think, **columns)

    screening.screen(chosen, run, watching_reward)
    assert {thinks for _, _, thinks in seen} == {True, False} and all(opened == thinks for _, opened, thinks in seen)
    bare = [text.startswith("\\boxed{") for text, _, thinks in seen if not thinks]
    assert sum(bare) > 0.9 * len(bare) and not any(t.startswith("\\boxed{") for t, _, thinks in seen if thinks)
    kept = {row["enable_thinking"] for row in read_lines(run.screened)}
    assert kept == {True, False}


@pytest.fixture
def screened(tmp_path, drawn):
    chosen, run = prepared(
        tmp_path, [0.3, 0.5, 0.7] * 20 + [0.0, 1.0] * 4, "grpo.max_steps=3", "grpo.per_device_train_batch_size=8",
        "grpo.num_generations=2", "grpo.max_completion_length=8", "grpo.reward_funcs=[x.py:f]",
        "grpo.reward_weights=[1.0]", "screening.sigma=0.05", "grpo.resample_budget=0",
    )  # fmt: skip
    screening.screen(chosen, run, right_reward)
    return chosen, run


@pytest.mark.slow
def test_training_takes_the_screened_rows_in_their_order_over_the_run(screened):
    chosen, run = screened
    kept = read_lines(run.screened)
    train.train(chosen, run, [wrong_reward])
    prompts = [line["prompt"] for line in read_lines(run.completions)[::2]]
    ordered = curriculum.order_rows(kept, 12, 0.05, chosen.run.seed)
    assert prompts == [row["prompt"][-1]["content"] for row in ordered]
    rates = [row["pass_rate"] for row in ordered]
    assert sum(rates[:4]) > sum(rates[4:8]) > sum(rates[8:])
    note = run.stages()["train"]
    assert set(note["read"]) == {"data/manifest.json", "data/train/screened.jsonl"}
    assert note["read"]["data/train/screened.jsonl"] == hash_of(run.screened)
    assert run.stages()["screen"]["read"] == {"data/manifest.json": hash_of(run.manifest)}
    with pytest.raises(ValueError, match=r"screening\.sigma was 0\.05, now 0\.3"):
        train.train(replace(chosen, screening=Screening(sigma=0.3)), run, [wrong_reward])


@pytest.mark.slow
def test_a_run_longer_than_its_rows_goes_from_easy_to_hard_once_not_once_per_epoch(screened):
    chosen, run = screened
    longer = replace(chosen, grpo=replace(chosen.grpo, max_steps=40, num_iterations=2))
    trainer = train.make_trainer(longer, run, [wrong_reward])
    rates = trainer.train_dataset["pass_rate"]
    assert len(rates) == 80 and not trainer.args.shuffle_dataset  # 40 steps of 4 prompts, each batch used twice
    assert sum(rates[:20]) > sum(rates[20:40]) > sum(rates[40:60]) > sum(rates[60:])


@pytest.mark.slow
def test_without_screening_training_samples_all_rows_by_their_learned_pass_rates(tmp_path):
    chosen, run = prepared(tmp_path, [0.5] * 12, "grpo.reward_funcs=[x.py:f]", "grpo.reward_weights=[1.0]")
    trainer = train.make_trainer(chosen, run, [wrong_reward])
    assert len(trainer.train_dataset) == trainer.prompt_sampler.size == 12 and trainer.prompt_sampler.kind == "useful"


@pytest.mark.slow
def test_screening_after_training_puts_the_training_out_of_date(tmp_path, drawn):
    chosen, run = prepared(
        tmp_path, [0.5] * 12, "grpo.max_steps=1", "grpo.per_device_train_batch_size=4", "grpo.num_generations=2",
        "grpo.max_completion_length=4", "grpo.reward_funcs=[x.py:f]", "grpo.reward_weights=[1.0]",
    )  # fmt: skip
    train.train(chosen, run, [wrong_reward])
    screening.screen(chosen, run, right_reward)
    with pytest.raises(ValueError, match=r"Stage 'train'.*screened\.jsonl changed since.*--force"):
        train.train(chosen, run, [wrong_reward])


@pytest.mark.slow
def test_new_data_makes_a_screening_out_of_date(screened, drawn):
    chosen, run = screened
    again = replace(chosen, data=replace(chosen.data, prompt_suffix="?"), run=replace(chosen.run, force=True))
    prepare(again, run)
    with pytest.raises(
        FileNotFoundError, match=r"screened\.jsonl, written by stage 'screen', is gone.*grpo-kit screen"
    ):
        train.train(chosen, run, [wrong_reward])
    later = replace(again, run=replace(again.run, force=False))
    with pytest.raises(ValueError, match=r"the file of training rows has changed.*--force"):
        screening.screen(later, run, right_reward)
    screening.screen(again, run, right_reward)
    assert screening.is_screened(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["screened", "left_out", "manifest"])
def test_a_file_changed_by_hand_is_noticed(screened, name):
    _, run = screened
    with getattr(run, name).open("a") as file:
        file.write("\n")
    sentence = r"is not as stage 'screen' wrote it.*`grpo-kit screen --force`"
    if name == "manifest":
        sentence = r"has changed since .* were screened.*`grpo-kit screen` again"
    with pytest.raises(ValueError, match=sentence):
        screening.is_screened(run)


@pytest.mark.slow
def test_on_the_command_line(tmp_path, drawn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.py").write_text(
        "def right_reward(completions, **_):\n"
        "    return [float(c[0]['content'] == 'right' or 'boxed' in c[0]['content']) for c in completions]\n"
    )
    chosen, run = prepared(tmp_path, [0.5] * 10 + [0.0] * 4, "evaluation.verifier=right.py")

    def call(*words, status=0):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == status, done.output + str(done.exception)
        return " ".join(done.output.split())

    assert (
        "nothing was touched" in call("screen", "--run", "r", "--dry-run")
        and not (tmp_path / "runs/r/screening.jsonl").exists()
    )
    output = call("screen", "--run", "r")
    assert (
        "screen done" in output
        and "of 14 prompts kept, pass rate 0.1 to 0.9; left out:" in output
        and "too hard" in output
    )
    assert "0.5 to 0.6 █" in output and "of the 224 without stopping early" in output
    assert "screen skipped" in call("screen", "--run", "r")
    assert "--force" in call("screen", "--run", "r", "data.pass_rate=[0.2,0.8]", status=2)
    assert "pass rate 0.2 to 0.8" in call("screen", "--run", "r", "--force", "data.pass_rate=[0.2,0.8]")
    assert "`grpo-kit data --run nobody` first" in call("screen", "--run", "nobody", status=2)
    made = run.manifest.stat().st_mtime_ns
    prepare(
        replace(chosen, data=replace(chosen.data, pass_rate=[0.2, 0.8])), run
    )  # another band does not change the data
    assert run.manifest.stat().st_mtime_ns == made


@pytest.mark.slow
def test_estimating_pass_rates_samples_a_few_rows_and_writes_nothing(tmp_path, math_reward):
    chosen = config.load_config(["tiny"], [*SMALL, "run.name=r"])
    run = find_run("r", tmp_path)
    prepare(chosen, run)
    before = sorted(tmp_path.rglob("*"))
    rates = screening.estimate_pass_rates(chosen, run, math_reward, num_prompts=6, tries=4)
    assert len(rates) == 6 and set(rates) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert sorted(tmp_path.rglob("*")) == before


def test_estimating_pass_rates_reads_recorded_ones_and_never_loads_a_large_model(screened, monkeypatch):
    chosen, run = screened[:2]
    monkeypatch.setattr(screening, "load_policy", lambda policy: pytest.fail("loaded"))
    on_record = {line["id"]: line["pass_rate"] for line in read_lines(run.screening)[1:]}
    assert sorted(screening.estimate_pass_rates(chosen, run, right_reward)) == sorted(on_record.values())
    for path in (run.screened, run.left_out):
        path.unlink()
    large = config.load_config(["t4"])
    assert screening.estimate_pass_rates(large, run, right_reward) == []
