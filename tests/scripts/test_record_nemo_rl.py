"""The script that writes down NeMo-RL's keys: over parents, with types, references resolved, and by version."""

from pathlib import Path

from grpo_kit.handoff.nemo_overlay import HOME
from scripts import record_nemo_rl


def write_configs(folder, extra=""):
    """The four configurations as small ones; the recipes are put on the first."""
    base, *others = (folder / Path(name).relative_to(HOME) for name in record_nemo_rl.CONFIGS)
    for path in (base, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
    base.write_text(f"policy: {{size: 2, twice: '${{mul:${{policy.size}}, 2}}', lora: {{}}}}\n{extra}")
    for path in others[:2]:
        path.write_text("defaults: ../../grpo_math_1B.yaml\npolicy: {lora: {dim: 8}}\n")
    others[2].write_text("policy: {size: null}\nenv: {paths: [a]}\n")


def test_keys_types_and_versions(tmp_path):
    write_configs(tmp_path / "old")
    write_configs(tmp_path / "new", "loss: {cispo: false}\n")
    assert record_nemo_rl.record({"v1": tmp_path / "old", "v2": tmp_path / "new"}).splitlines() == [
        "env dict v1 v2",
        "env.paths list v1 v2",
        "loss dict v2",
        "loss.cispo bool v2",
        "policy dict v1 v2",
        "policy.lora dict v1 v2",
        "policy.lora.dim int v1 v2",
        "policy.size NoneType|int v1 v2",
        "policy.twice int v1 v2",
    ]
