"""A finished stage is not made again with other settings or rewards unasked, and the message says what differs."""

import platform

import pytest

from grpo_kit.runs.records import describe_environment, refuse_differences


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
        ValueError, match=rf"different settings \(seed was 1, now 2; the file of {name} changed since\)"
    ):
        refuse_differences("r", "data", record, {"seed": 2} | now, [])


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
