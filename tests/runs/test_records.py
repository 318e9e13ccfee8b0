"""A finished stage is not made again with other settings or rewards unasked, and the message says what differs."""

import platform

import pytest

from grpo_kit.runs.records import describe_environment, list_changed_settings, refuse_differences


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ({"verifier": "a" * 64}, {"verifier": "b" * 64}, r"the verifier \(evaluation\.verifier\)"),
        ({"rewards": {"math_reward": "a", "r": "c"}}, {"rewards": {"math_reward": "b", "r": "c"}}, "math_reward"),
    ],
)
def test_a_stage_whose_reward_file_changed_says_so_and_how_to_keep_it(before, now, name):
    record = {"settings": {"seed": 1} | before}
    with pytest.raises(ValueError, match=rf"the file of {name} has changed since.*working folder.*--force.*--run"):
        refuse_differences("r", "data", record, {"seed": 1} | now, [])
    refuse_differences("r", "data", record, {"seed": 1} | before, [])
    with pytest.raises(
        ValueError, match=rf"different settings \(run\.seed was 1, now 2; the file of {name} changed since\)"
    ):
        refuse_differences("r", "data", record, {"seed": 2} | now, [])


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"mix": {"math": 1.0}}, {"mix": {"math": 2.0}}, "data.mix.math was 1.0, now 2.0"),
        ({"seed": 0, "grpo": {"beta": 0}}, {"seed": 1, "grpo": {"beta": 0}}, "run.seed was 0, now 1"),
        ({"precision": {"fp16": True}}, {"precision": {"fp16": False}}, "grpo.fp16 was True, now False"),
        ({"sampling": {"top_k": 0}}, {"sampling": {"top_k": 5}}, "grpo.top_k was 0, now 5"),
        ({"rewards": {"a": "3f", "b": "4e"}}, {"rewards": {"a": "3a", "b": "4e"}}, "the reward a has changed"),
        ({"rewards": {"a": "3f"}}, {"rewards": {"b": "3f"}}, "the reward a is not there any more; the reward b is new"),
        ({"verifier": "3f"}, {"verifier": "3a"}, "the verifier has changed"),
        ({"verifier": {"math": "3f"}}, {"verifier": {"math": "3a"}}, "the verifier math has changed"),
        ({"reads": {"data.jsonl": "3f"}}, {"reads": {"data.jsonl": None}}, "data.jsonl has changed"),
        ({"worlds": {"office": "3f", "max_tool_calling_iterations": 4}},
         {"worlds": {"office": "3f", "max_tool_calling_iterations": 5}},
         "grpo.max_tool_calling_iterations was 4, now 5"),
        ({"adapter": "3f", "rows": "1"}, {"rows": "2"},
         "the adapter is not there any more; the file of training rows has changed"),
        ({"rewards": {"a": "3f"}}, {"rewards": {"a": "3f"}}, ""),
    ],
)  # fmt: skip
def test_a_difference_is_named_as_the_user_can_write_it(before, now, words):
    assert "; ".join(list_changed_settings(before, now)) == words


def test_the_commit_of_the_kits_own_reward_is_named():
    record = {"settings": {"verifier": "a"}, "environment": {"commit": "0123456789abcdef"}}
    with pytest.raises(ValueError, match=r"\(the kit's own are those of commit 0123456789ab\)"):
        refuse_differences("r", "data", record, {"verifier": "b"}, [])


def test_a_zip_made_with_different_settings_may_be_written_beside_the_first():
    with pytest.raises(ValueError, match=r"dtype was None, now float32.*--force.*or --out for a second zip"):
        refuse_differences("r", "package", {"settings": {"dtype": None}}, {"dtype": "float32"}, [])


def test_the_environment_names_a_missing_package_and_imports_none(monkeypatch):
    monkeypatch.setattr("grpo_kit.runs.records.PACKAGES", ("trl", "no-such-package"))
    environment = describe_environment()
    assert environment["packages"] == {"trl": "1.16.0", "no-such-package": None}
    assert environment["python"] == platform.python_version()
