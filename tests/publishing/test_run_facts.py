"""What a run says of itself in public: nothing that is not recorded, no path, no name of a user's file."""

import json
import shutil

import pytest

from grpo_kit.config import Policy, keep_finished_settings
from grpo_kit.publishing import public_record, run_facts
from grpo_kit.publishing.base import find_base
from grpo_kit.publishing.run_facts import Measured, Source, choose_examples, split_by_set
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import Run

OWN = Source("own file 1", "unstated", None, 3, ["0a"], "ada_private.csv")
SUMS = Source("tiny-sums", "cc0-1.0", None, 3, [], "tiny-sums")


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the small run that may be changed."""
    run = Run(tmp_path / "runs", trained[1].name)
    shutil.copytree(trained[1].path, run.path, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    return run


def change(path, function):
    value = json.loads(path.read_text())
    function(value)
    path.write_text(json.dumps(value))


def test_the_measurements_are_those_of_the_files(trained):
    run = trained[1]
    measured = run_facts.read_measurements(run)
    assert [each.label for each in measured] == ["before training", "after GRPO"]
    for each, name in zip(measured, ("before", "after")):
        assert each.report == json.loads((run.evaluation / f"{name}.json").read_text())
    report = json.loads((run.evaluation / "report.json").read_text())
    assert measured[0].change is None
    assert {key: measured[1].change[key] for key in ("difference", "difference_ci95", "gained", "lost")} == {
        key: report[key] for key in ("difference", "difference_ci95", "gained", "lost")
    }


def test_a_measurement_of_another_adapter_is_left_out(copied):
    change(copied.notes, lambda notes: notes["stages"]["after"]["read"].update(adapter="0" * 64))
    assert [each.label for each in run_facts.read_measurements(copied)] == ["before training"]


def test_measurements_with_other_settings_are_not_compared(copied):
    change(copied.notes, lambda notes: notes["stages"]["before"]["settings"].update(seed=1))
    assert run_facts.read_measurements(copied)[1].change is None


def test_measurements_on_other_rows_are_left_out_and_other_training_rows_refused(copied):
    change(copied.notes, lambda notes: notes["stages"]["before"]["read"].update({"data/manifest.json": "0" * 64}))
    assert [each.label for each in run_facts.read_measurements(copied)] == ["after GRPO"]
    change(copied.notes, lambda notes: notes["stages"]["train"]["read"].update({"data/manifest.json": "0" * 64}))
    with pytest.raises(ValueError, match="prepared again after stage 'train'"):
        run_facts.read_sources(copied)


def test_a_users_own_file_is_numbered_and_public_sets_keep_their_names(trained, copied):
    def entries(manifest):
        recipe = {"about": "x", "licence": "unstated"}
        manifest["sources"] = [
            {"name": "ada_private.csv", "files": {"ada_private.csv": "a" * 64}, "recipe": recipe, "rows": 3},
            {"name": "ada/other.jsonl", "files": {"other.jsonl": "b" * 64}, "recipe": recipe, "rows": 3},
            {
                "name": "gsm8k",
                "files": {},
                "recipe": {"licence": "mit", "hub": "openai/gsm8k"},
                "rows_sha256": "c" * 64,
            },
            {"name": "org/set", "files": {}, "recipe": {"licence": "unstated", "hub": "org/set"}},
        ]

    change(copied.manifest, entries)
    digest = hash_of(copied.manifest)
    for stage in ("data", "train"):
        side = "wrote" if stage == "data" else "read"
        change(
            copied.notes, lambda notes, s=stage, k=side: notes["stages"][s][k].update({"data/manifest.json": digest})
        )
    found = run_facts.read_sources(copied)
    assert [(s.name, s.hub, s.licence) for s in found] == [
        ("own file 1", None, "unstated"), ("own file 2", None, "unstated"), ("gsm8k", "openai/gsm8k", "mit"),
        ("org/set", "org/set", "unstated"),
    ]  # fmt: skip
    record = json.dumps(public_record.make_record(collect(trained[0], copied)))
    assert (
        "ada_" not in record
        and "ada/" not in record
        and str(copied.root) not in record
        and "a" * 64 in record
        and "c" * 64 in record
    )


# a setting that is not the run's, and what the refusal names
OTHER = [
    ("policy.enable_thinking=false", "policy.enable_thinking was True, now False: a card describes run 'small' as"),
    ("policy.load_in_4bit=true", "policy.load_in_4bit was False, now True"),
    ("policy.revision=abc", "policy.revision was None, now abc"),
    ("data.system_prompt=Hello", "data.system_prompt was , now Hello"),
    ("lora.r=8", "lora.r was 16, now 8"),
    ("grpo.max_steps=5", "grpo.max_steps was 4, now 5"),
]


@pytest.mark.parametrize(("override", "words"), OTHER)
def test_a_setting_that_is_not_the_runs_is_refused_by_its_name(trained, override, words):
    config, run = trained
    config = keep_finished_settings(config, [], [override])
    with pytest.raises(ValueError) as raised:
        run_facts.require_recorded(config, run)
    assert str(raised.value).startswith(words) and str(raised.value).endswith("Leave this setting out.")


def test_settings_that_only_one_version_has_are_not_compared(trained, copied):
    change(copied.notes, lambda notes: notes["stages"]["train"]["settings"]["policy"].pop("thinking_budget"))
    change(copied.notes, lambda notes: notes["stages"]["data"]["settings"]["data"].update(of_then=1))
    run_facts.require_recorded(trained[0], copied)


def collect(config, run):
    return run_facts.collect_facts(config, run, "ada/sums", find_base(Policy(model="org/base")), {})


def test_seconds_are_those_of_the_steps_and_not_of_the_last_session(trained, copied):
    rows = [json.loads(line) for line in copied.metrics.read_text().splitlines()]
    facts = collect(trained[0], copied)
    assert facts.seconds == {"train": rows[-1]["seconds"]}
    with copied.metrics.open("a") as file:  # of a training that goes on
        file.write(json.dumps(rows[-1] | {"step": 5, "seconds": 99.0}) + "\n")
    change(copied.notes, lambda notes: notes["stages"]["train"].update(seconds=0.01))
    assert collect(trained[0], copied).seconds == facts.seconds
    change(copied.notes, lambda notes: notes["stages"]["train"].update(steps=77))
    assert collect(trained[0], copied).seconds == {}


def test_samples_are_of_the_published_adapter(trained, copied):
    assert collect(trained[0], copied).examples
    change(copied.notes, lambda notes: notes["stages"]["after"]["read"].update(adapter="0" * 64))
    assert collect(trained[0], copied).examples == []


def test_accuracies_are_those_of_their_sets():
    one, two = {"pass@1": 0.1}, {"pass@1": 0.2}
    problems = [{"set": "test", "environment": "structured"}, {"set": "math500", "environment": "math"}]
    report = {"problems": problems, "by": {"environment": {"structured": one, "math": two}}, "sampling": {}}
    assert split_by_set(report) == {"test": one, "math500": two}
    by_set = {"b.csv": one, "test": two, "a/b": one}
    report = {"problems": [{"set": name} for name in by_set], "by": {"set": by_set}}
    assert split_by_set(report) == {"own set 1": one, "test": two, "own set 2": one}
    report = {"problems": [{"set": "ada.csv"}], "by": {}}
    assert split_by_set(report) == {"own set 1": report}
    report = {"problems": [{}], "sampling": {"sets": ["test"]}}  # of an earlier version
    assert split_by_set(report) == {"test": report}


def problem(number, score, source="tiny-sums", **more):
    text = f"reply {number} {score}"
    return {
        "id": str(number),
        "prompt": f"p{number}",
        "answer": "1",
        "score": score,
        "completions": [text],
        "source": source,
    } | more


def choose(before, after, sources=(SUMS, OWN)):
    measured = [Measured("", {"problems": before}, None)] if before is not None else []
    return choose_examples([*measured, Measured("train", {"problems": after}, None)], list(sources))


def test_the_first_problem_of_each_kind_is_shown():
    scores = [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (None, 0.0)]
    before, after = ([problem(n, pair[side]) for n, pair in enumerate(scores)] for side in (0, 1))
    chosen = choose(before, after)
    assert [(e.title, e.problem) for e in chosen] == [
        ("Wrong before, right after", "p2"), ("Right before, wrong after", "p4"), ("Still wrong", "p1"),
    ]  # fmt: skip
    assert (chosen[0].before, chosen[0].after) == ("reply 2 0.0", "reply 2 1.0")


def test_without_a_measurement_before_right_and_wrong_ones_are_shown():
    chosen = choose(None, [problem(1, 0.0), problem(2, 1.0)])
    assert [(e.title, e.problem, e.before) for e in chosen] == [("Right", "p2", None), ("Wrong", "p1", None)]


def test_problems_without_a_known_licence_are_not_shown():
    assert choose(None, [problem(1, 0.0, "ada_private.csv"), problem(2, 1.0, "elsewhere")]) == []
    assert (
        choose(None, [problem(1, 0.0, set="ada.csv"), problem(2, 1.0, "ada_private.csv", set="math500")])[0].problem
        == "p2"
    )
    assert choose([problem(1, 0.0)], [], [SUMS]) == [] and choose_examples([], []) == []
