"""`demo --environments`: which stages it runs with which settings. That they learn is tested with the policy."""

from typer.testing import CliRunner

from grpo_kit.cli import demo
from grpo_kit.cli.main import app
from grpo_kit.runs.run import Run

NAMES = ["math", "structured", "instructions", "documents"]


def test_all_environments_are_trained_and_then_one_and_both_runs_measure_all(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    calls = []
    for stage in ("prepare_data", "measure_accuracy", "train_policy"):
        monkeypatch.setattr(
            demo.stages, stage, lambda config, run, *more, stage=stage: calls.append((stage, *more, run.name, config))
        )
    monkeypatch.setattr(Run, "environments", lambda run: NAMES)
    monkeypatch.setattr(demo, "_compare", lambda run: calls.append(("compare", run.name)))
    monkeypatch.setattr(demo, "print_comparison", lambda *_: None)
    result = CliRunner().invoke(app, ["demo", "--environments"])
    assert result.exit_code == 0, result.output
    words = [call if call[0] == "compare" else call[:-1] for call in calls]
    assert words == [
        (*part, run)
        for run in ("demo-environments", "demo-environments-structured")
        for part in (
            ("prepare_data",), ("measure_accuracy", "before"), ("train_policy",), ("measure_accuracy", "after"),
            ("compare",),
        )
    ]  # fmt: skip
    first, second = calls[0][-1], calls[5][-1]
    assert first.data.mix == {} and second.data.mix == {name: float(name == "structured") for name in NAMES}
    assert first.data.identity() == second.data.identity() and first.grpo == second.grpo
    assert "grpo-kit report --run demo-environments" in result.output
