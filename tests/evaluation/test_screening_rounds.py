"""Pass rates are measured in rounds, stopped early, and resumed after a kill."""

import contextlib
import json
import os
import signal
import time
from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import screening, screening_rounds
from grpo_kit.policy.generate import Sample
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers.processes import start as start_python
from tests.helpers.screening import FEW, by_id, chance_of, prepared, right_reward, wrong_reward
from tests.helpers.settings import SMALL


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
def test_a_prompt_with_an_unusable_gold_is_sampled_once_and_has_no_pass_rate(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.5] * 8, answers=dict.fromkeys(range(3), "none"))
    report = screening.screen(chosen, run, right_reward)
    lines = [line for line in by_id(run).values() if line["pass_rate"] is None]
    assert report["gold cannot be used"] == len(lines) >= 2
    assert all((line["samples"], line["tried"], line["low"], line["high"]) == (4, 0, 0.0, 1.0) for line in lines)


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
