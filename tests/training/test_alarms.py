"""Each alarm fires for its own problem only and names the setting that fixes it."""

import pytest

from grpo_kit.training.alarms import find_alarms

GRPO = {"max_completion_length": 512, "max_grad_norm": 1.0}
FINE = {
    "completions/clipped_ratio": 0.05, "groups/all_right": 0.2, "groups/all_wrong": 0.1, "groups/unjudged": 0.0,
    "groups/with_gradient": 0.7, "groups/replaced": 0.0, "entropy": 0.4, "skipped_steps": 0,
    "sampling/logp_gap": 0.002, "grad_norm": 0.3,
}  # fmt: skip


def rows(count=10, **changed):
    return [{"step": i + 1, "reward": 0.5, "note": "text", **FINE, **changed} for i in range(count)]


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        (
            {"completions/clipped_ratio": 0.87},
            "truncated",
            "87% of completions are cut at 512 tokens: raise grpo.max_completion_length",
        ),
        (
            {"groups/all_right": 0.75, "groups/with_gradient": 0.25},
            "solved",
            "75% of groups are all right and have no gradient: use",
        ),
        (
            {"groups/all_wrong": 0.9, "groups/with_gradient": 0.1},
            "hopeless",
            "90% of groups are all wrong and have no gradient: use",
        ),
        (
            {"groups/all_right": 0.95, "groups/with_gradient": 0.375, "groups/replaced": 0.325},
            "solved",
            "95% of groups are all right and have no gradient; with replacements 38% of those trained on have one: use",
        ),
        (
            {"groups/all_wrong": 0.9, "groups/with_gradient": 0.4, "groups/replaced": 0.3},
            "hopeless",
            "have no gradient; with replacements 40% of those trained on have one: use easier prompts",
        ),
        ({"groups/unjudged": 0.5}, "unjudged", "completions.jsonl"),
        ({"entropy": 0.001}, "collapsed", "lower grpo.learning_rate or raise grpo.temperature"),
        ({"skipped_steps": 7}, "overflow", "7 of 10 steps overflowed in fp16"),
        ({"sampling/logp_gap": 0.4}, "mismatch", "differ by 0.40 nats"),
        ({"grad_norm": 50.0}, "exploding", "50 times grpo.max_grad_norm"),
    ],
)
def test_each_alarm_fires_on_its_own(changed, name, words):
    ((ringing, sentence),) = find_alarms(rows(**changed), GRPO)
    assert ringing == name and words in sentence


def test_healthy_runs_and_young_runs_raise_no_alarm():
    assert find_alarms(rows(), GRPO) == []
    assert find_alarms(rows(9, **{"completions/clipped_ratio": 1.0}), GRPO) == []


def test_a_run_in_which_nothing_is_judged_is_named_from_its_first_step_on():
    unjudged = {"groups/unjudged": 1.0}
    for ringing in (rows(1, **unjudged), [*rows(1, **unjudged), {"step": 2}], [*rows(2), *rows(10, **unjudged)]):
        ((name, sentence),) = find_alarms(ringing, GRPO)
        assert name == "nothing" and "not one completion could be judged" in sentence
    assert find_alarms([*rows(8), *rows(1, **unjudged)], GRPO) == []


def test_gradients_that_are_not_clipped_are_not_compared_with_the_clip():
    assert find_alarms(rows(grad_norm=50.0), GRPO | {"max_grad_norm": 0.0}) == []


@pytest.mark.parametrize("cause", ["all_right", "all_wrong"])
def test_replaced_groups_raise_no_alarm(cause):
    assert (
        find_alarms(rows(**{f"groups/{cause}": 0.9, "groups/with_gradient": 1.0, "groups/replaced": 0.9}), GRPO) == []
    )


def test_steps_that_sampled_nothing_do_not_count():
    sampled = {"groups/all_right": 0.8, "groups/with_gradient": 0.2, "completions/clipped_ratio": 0.9}
    again = [{key: value for key, value in row.items() if key not in sampled} for row in rows(5)]
    alarms = find_alarms([row for pair in zip(rows(5, **sampled), again) for row in pair], GRPO)
    assert [name for name, _ in alarms] == ["truncated", "solved"] and alarms[1][1].startswith("80% of groups")
    assert find_alarms([*rows(9, entropy=None), *rows(1)], GRPO) == []  # nothing taught, nothing known of entropy


def test_one_bad_step_raises_no_alarm_and_old_steps_are_forgotten():
    assert find_alarms([*rows(9), *rows(1, **{"completions/clipped_ratio": 1.0})], GRPO) == []
    assert find_alarms([*rows(30, **{"completions/clipped_ratio": 1.0}), *rows(10)], GRPO) == []


def test_rows_that_lack_a_figure_or_hold_none_raise_nothing():
    assert find_alarms([{"step": i} for i in range(12)], GRPO) == []
    assert find_alarms(rows(**{"grad_norm": None}), GRPO) == []


def environment_rows(**figures):
    row = {"completions/clipped_ratio": 0.1, "groups/with_gradient": 0.9}
    return [{"step": i, **row, **{f"environments/{key}": value for key, value in figures.items()}} for i in range(10)]


def test_an_environment_without_gradients_rings_although_the_others_have_some():
    rows = environment_rows(**{"json/clipped": 0.0, "json/with_gradient": 0.05, "json/right": 0.02,
                               "math/clipped": 0.0, "math/with_gradient": 0.9, "math/right": 0.5})  # fmt: skip
    assert find_alarms(rows, GRPO) == [
        (
            "flat json",
            "5% of the groups of json have a gradient (2% of its completions are right), so nothing is learned there: "
            "take easier tasks (`grpo-kit screen`).",
        )
    ]


def test_an_environment_that_is_solved_and_one_that_is_cut_ring():
    rows = environment_rows(**{"json/clipped": 0.7, "json/with_gradient": 0.0, "json/right": 0.99})
    found = dict(find_alarms(rows, GRPO))
    assert set(found) == {"truncated json", "flat json"} and "harder tasks" in found["flat json"]


def held_out(**values):
    return {f"held_out/{name}": value for name, (value, _) in values.items()} | {
        f"held_out/{name}_ci95": interval for name, (_, interval) in values.items()
    }


@pytest.mark.parametrize(
    ("last", "rings"),
    [
        (held_out(math=(0.9, [0.8, 0.95]), json=(0.2, [0.1, 0.3])), True),
        (held_out(math=(0.9, [0.8, 0.95]), json=(0.4, [0.3, 0.55])), False),  # within its interval
        (held_out(math=(0.5, [0.4, 0.6]), json=(0.2, [0.1, 0.3])), False),  # no other rose
        (held_out(math=(0.9, [0.8, 0.95])), False),  # json was not measured again
        (held_out(math=(0.9, [0.8, 0.95]), json=(0.37, [0.28, 0.48])), False),  # 0.5 was uncertain too
        (held_out(math=(0.63, [0.52, 0.72]), json=(0.2, [0.1, 0.3])), False),  # as was the one that seems to rise
    ],
)
def test_an_environment_that_falls_while_another_rises_rings(last, rings):
    first = held_out(math=(0.5, [0.4, 0.6]), json=(0.5, [0.4, 0.6]))
    rows = [{"step": 0} | first, {"step": 1}, {"step": 2} | last]
    found = find_alarms(rows, GRPO)
    assert [name for name, _ in found] == (["forgotten json"] if rings else [])
    if rings:
        assert "(json 50% to 20%) while it rose in another (math 50% to 90%)" in found[0][1]


def test_one_measurement_of_the_environments_rings_nothing():
    assert find_alarms([{"step": 0} | held_out(math=(0.5, [0.4, 0.6]))], GRPO) == []


DPO = {"section": "dpo", "beta": 0.05, "max_grad_norm": 1.0}
LEARNS = {
    "rewards/chosen": 0.2,
    "rewards/rejected": -0.4,
    "rewards/margins": 0.6,
    "rewards/accuracies": 0.9,
    "loss": 0.5,
}
PREFERENCES = [  # figures of ten rows, the alarm or None, a part of its sentence
    ({}, None, ""),
    ({"rewards/chosen": -0.05, "rewards/margins": 0.35}, None, ""),
    (
        {"rewards/chosen": -0.2, "rewards/rejected": -0.8},
        "chosen falls",
        "fell by 4.0 nats against the policy before this",
    ),
    ({"rewards/chosen": -0.2, "rewards/rejected": -0.8}, "chosen falls", "rejected ones by 16.0: both become rarer"),
    ({"rewards/accuracies": 0.5}, "few pairs decide", "the mean margin is +0.60, and in only 50% of pairs"),
    ({"rewards/accuracies": 0.5, "rewards/margins": 0.01}, None, ""),
    ({"skipped_steps": 5}, "overflow", "5 of 10 steps overflowed in fp16 and were skipped: lower dpo.learning_rate"),
    ({"grad_norm": 150.0}, "exploding", "150.0, 150 times dpo.max_grad_norm"),
    ({"grad_norm": 90.0}, None, ""),  # clipped, as the summed SFT term makes usual
    ({"loss": None}, "lost", "NaN or infinite at 10 of the last 10 steps: lower dpo.learning_rate"),
]


@pytest.mark.parametrize(("figures", "name", "words"), PREFERENCES)
def test_alarms_of_preferences_say_what_to_change(figures, name, words):
    rows = [{"step": step} | LEARNS | figures for step in range(1, 11)]
    ringing = find_alarms(rows, DPO)
    assert [each for each, _ in ringing] == ([name] if name else [])
    assert words in "".join(text for _, text in ringing)
    assert find_alarms(rows[:9], DPO) == [] or name == "lost"


SFT = {"section": "sft", "max_grad_norm": 1.0, "learning_rate": 2e-4}


def losses(*windows):
    """Rows of a training on texts; each number is the loss of ten steps."""
    values = [loss for loss in windows for _ in range(10)]
    return [{"step": i + 1, "loss": loss, "entropy": 0.4, "grad_norm": 0.3} for i, loss in enumerate(values)]


@pytest.mark.parametrize(
    ("windows", "name", "words"),
    [
        ((2.0, 1.99, 2.01, 1.99), "not learning", "is 1.990 nats a token, and began at 2.000, so nothing is"),
        ((2.0, 1.0, 0.5, 0.7), "rising", "0.700 nats a token, and was 0.500 before: lower sft.learning_rate"),
        ((2.0, None), "lost", "NaN or infinite at 10 of the last 10 steps: lower sft.learning_rate"),
        ((None,), "lost", "NaN or infinite at 10 of the last 10 steps"),
    ],
)  # fmt: skip
def test_a_loss_of_texts_that_does_not_fall_is_named(windows, name, words):
    ((ringing, sentence),) = find_alarms(losses(*windows), SFT)
    assert ringing == name and words in sentence


def test_texts_that_are_learned_raise_no_alarm():
    for windows in ((2.0, 1.9, 1.8, 1.7), (2.0, 2.0, 2.0), (0.02, 0.001, 0.001, 0.002), (2.0, 0.5, 0.5, 0.55)):
        assert find_alarms(losses(*windows), SFT) == []
    sure = [row | {"entropy": 0.0001} for row in losses(2.0, 0.001)]
    assert find_alarms(sure, SFT) == []  # a text may leave nothing open
    assert find_alarms(losses(2.0, 2.0, 2.0, 2.0, 2.0), GRPO) == []  # a loss of GRPO says nothing
    assert find_alarms([{"step": 1, "loss": None}], SFT)[0][0] == "lost"  # from the first step on


def test_shared_alarms_name_the_settings_of_their_section():
    exploding = [row | {"grad_norm": 50.0} for row in losses(2.0)]
    overflow = [row | {"skipped_steps": 7} for row in losses(2.0)]
    assert find_alarms(exploding, SFT)[0][1].endswith("50 times sft.max_grad_norm: lower sft.learning_rate.")
    assert find_alarms(overflow, SFT)[0][1].endswith("lower sft.learning_rate or sft.max_grad_norm.")


def test_a_judge_without_verdicts_rings():
    (name, words), *others = find_alarms(rows(**{"judge/no_verdict": 0.25}), GRPO)
    assert name == "judge" and "no verdict on 25% of the comparisons" in words and others == []
    assert find_alarms(rows(**{"judge/no_verdict": 0.1}), GRPO) == []
