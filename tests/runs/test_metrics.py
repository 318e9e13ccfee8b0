"""A metrics file of an earlier version is read under today's names."""

import json

from grpo_kit.runs.metrics import read_metrics

# A line as version 0.1.0 wrote it.
OLD = {
    "step": 2, "seconds": 1.5, "reward": 0.5, "useful/unjudged": 0.0, "useful/truncated": 0.125,
    "useful/all_right": 0.25, "useful/all_wrong": 0.5, "useful/share": 0.75, "useful/replaced": 0.625,
    "useful/asked": 2.0, "held_out": 0.4,
}  # fmt: skip


def test_rows_of_version_0_1_0_have_todays_names_and_their_own_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        json.dumps(OLD) + "\n" + json.dumps({"step": 3, "seconds": 2.5, "groups/with_gradient": 1.0}) + "\n"
    )
    assert read_metrics(path) == [
        {
            "step": 2, "seconds": 1.5, "reward": 0.5, "groups/unjudged": 0.0, "groups/truncated": 0.125,
            "groups/all_right": 0.25, "groups/all_wrong": 0.5, "groups/with_gradient": 0.75, "groups/replaced": 0.625,
            "groups/sampled": 2.0, "held_out": 0.4,
        },
        {"step": 3, "seconds": 2.5, "groups/with_gradient": 1.0},
    ]  # fmt: skip
