"""`grpo-kit rewards audit` and `judge-check`. `main` registers them; the work is done in `grpo_kit`."""

import typer

from grpo_kit.cli import options
from grpo_kit.cli.errors import report_errors
from grpo_kit.display import console
from grpo_kit.display.terminal.checks import print_judge
from grpo_kit.runs.session import open_run

app = typer.Typer(help="Test reward functions.", no_args_is_help=True)


@app.command(short_help="Test a reward function on labelled answers.")
@report_errors
def audit(reward: options.RewardFile, cases: options.Cases = None) -> None:
    """Test a reward function on labelled answers: wrong ones paid, right ones refused, hangs and exceptions by kind.

    The exit status is 1 where the reward paid a wrong answer or executed the text of a reply.
    """
    from grpo_kit.rewards.tools.audit import audit_reward
    from grpo_kit.rewards.tools.audit_report import print_report

    report = audit_reward(reward, cases)
    print_report(report, console.out)
    if report.harm:
        raise RuntimeError(f"Do not train with {reward}, because {report.harm}. Correct it first.")
    if all(trial.right for trial in report.trials):
        console.print_next(["train", f"grpo.reward_funcs=[{reward}]", "grpo.reward_weights=[1.0]"])


@app.command("judge-check", short_help="Measure a judge on pairs with a known winner.")
@report_errors
def judge_check(
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    pairs: options.Pairs = None,
    limit: options.MostPairs = 200,
) -> None:
    """Measure the judge of a run (judge.model) on pairs with a known winner: evaluation/judge.json.

    A right completion of the run beats a wrong one of the same group. Each pair is judged in both orders. The exit
    status is 1 where the judge is not good enough to train with.
    """
    from grpo_kit.evaluation.judge.check import check_judge
    from grpo_kit.evaluation.judge.figures import find_fault

    config, run = open_run(sources or (), overrides or (), name)
    with console.show_progress("judging") as show:
        report = check_judge(config, run, pairs, limit, show)
    print_judge(report)
    if fault := find_fault(report, config.judge.threshold):
        raise RuntimeError(f"The judge {config.judge.model} may not train: {fault.reason}. {fault.remedy}")
    presets = [word for source in sources or () for word in ("-c", source)]
    console.print_next(["train", *presets, "--run", run.name, *(overrides or ())])
