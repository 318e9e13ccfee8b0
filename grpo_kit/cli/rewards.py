"""`grpo-kit rewards audit`. `main` registers it; the work is done in `grpo_kit.rewards.tools`."""

import typer

from grpo_kit.cli import options
from grpo_kit.cli.errors import report_errors
from grpo_kit.display import console

app = typer.Typer(help="Test reward functions.", no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Keep `audit` a subcommand, although it is the only one."""


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
