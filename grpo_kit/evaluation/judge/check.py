"""How good a judge is, measured before it trains anything: on pairs with a known winner, in both orders.

`grpo-kit rewards judge-check` writes `evaluation/judge.json`. A training with a judge among its rewards needs that
record of this judge, with an agreement of `judge.threshold` or more.
"""

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Judge, Policy, RunConfig
from grpo_kit.evaluation.judge.figures import LEAST_PAIRS, SELF, find_fault, summarise_verdicts, write_words
from grpo_kit.evaluation.judge.pairs import Pair, hash_pairs, make_pairs, read_pairs
from grpo_kit.nemotron.placement.relief import with_relief
from grpo_kit.policy.load import load_policy
from grpo_kit.rewards.tools.calling import Reward
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.rewards.tools.routing import find_judge
from grpo_kit.runs import activity, processes
from grpo_kit.runs.files import to_json, write_text
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run

KIT_JUDGE = "judge.py:judge_reward"
PORTION = 16  # pairs that are judged between two reports of the progress


def check_judge(
    config: RunConfig,
    run: Run,
    pairs_file: Path | None = None,
    limit: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure the judge of a run on pairs with a known winner, each in both orders.

    Args:
        config: `judge` says who judges.
        run: its judged completions give the pairs.
        pairs_file: JSON Lines with prompt, chosen and rejected instead, of which equal rows count once; None takes the
            run's own.
        limit: pairs at most; of a file, the first ones.
        progress: is called with (pairs judged, pairs in all).

    Returns:
        What `evaluation/judge.json` holds: `agreement`, `order_decides`, `first_wins`, `longer_wins` and
        `longer_is_right` (None where all answers are equally long), each as `value` and `ci95`; `no_verdict`, a share
        of the comparisons, and `last_fault`, why (None where all have one); `judge`, its identity; `pairs`, with their
        number, how many `equal` rows were left out, and sha256; `words`, a list of sentences. A judge that is silent on
        all of the first 16 pairs is asked nothing more. A check with fewer than 20 judged pairs replaces no
        record, and one without any verdict writes none.

    Raises:
        FileNotFoundError: the run has no data, or there is no such file.
        ValueError: there is no pair; the judge cannot be asked.
        ConnectionError: the judge's server refuses.
    """
    run.require_stage("data", "grpo-kit data")
    began = time.monotonic()
    with run.lock("judge"):
        pairs, equal = read_pairs(pairs_file, limit) if pairs_file else (make_pairs(config, run, limit), 0)
        spec = next(iter(list_judges(config, run)), KIT_JUDGE)
        judge = find_judge(load_reward(spec))
        hand_over(config, run, [judge], load_judge(config), is_measured=False)
        activity.announce("judging pairs")
        verdicts: list[Any] = []
        for start in range(0, len(pairs), PORTION):
            portion = pairs[start : start + PORTION]
            verdicts += judge.compare([question for pair in portion for question in _both_orders(pair)])
            if progress:
                progress(len(verdicts) // 2, len(pairs))
            if not any(verdicts):
                break
        identity = describe_judge(config, spec) | {"served_model": _served_model(judge)}
        source = str(pairs_file) if pairs_file else f"run {run.name}"
        report = {
            "judge": identity,
            "pairs": {"count": len(pairs), "equal": equal, "source": source, "sha256": hash_pairs(pairs)},
            **summarise_verdicts(pairs[: len(verdicts) // 2], verdicts),
            "last_fault": _explain_silence(judge) if None in verdicts else None,
            "seconds": round(time.monotonic() - began, 2),
        }
        report["words"] = write_words(report, config)
        if any(verdicts) and (report["judged"] >= LEAST_PAIRS or not run.judge.exists()):
            write_text(run.judge, to_json(report, indent=1, ensure_ascii=False) + "\n")
        else:
            kept = f"{run.judge} keeps what was measured before" if run.judge.exists() else "Nothing was recorded"
            report["words"].append(f"Pairs tried: {len(verdicts) // 2} of {len(pairs)}. {kept}.")
    return report


def _both_orders(pair: Pair) -> list[tuple[Any, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected), (pair.prompt, pair.rejected, pair.chosen)]


def list_judges(config: RunConfig, run: Run) -> list[str]:
    """The judges among the rewards of the run's environments, as the configuration names them."""
    specs = [spec for name in run.environments() for spec in config.rewards_of(name).reward_funcs]
    return [spec for spec in dict.fromkeys(specs) if find_judge(load_reward(spec))]


def describe_judge(config: RunConfig, reward: Reward | str) -> dict[str, Any]:
    """Who judges: the model, with the settings it is loaded with unless a server has it, and the reward's file."""
    reward = load_reward(reward) if isinstance(reward, str) else reward
    loaded = {} if config.judge.is_server else {"policy": judge_policy(config).identity()}
    return {"model": config.judge.model, "file": fingerprint(reward)} | loaded


def judge_policy(config: RunConfig) -> Policy:
    """The policy section by which the judge's model is loaded."""
    if config.judge.model == "policy":
        return config.policy
    return replace(config.policy, model=config.judge.model, revision=None, routing=None, nf4_folder=None)


def load_judge(config: RunConfig, policy: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) that judges; (None, None) where a server does.

    Args:
        config: names it.
        policy: the policy, where it is loaded already.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: it cannot be loaded.
    """
    if config.judge.is_server:
        return None, None
    if config.judge.model == "policy" and policy:
        return policy
    try:
        return load_policy(judge_policy(config))
    except (FileNotFoundError, ValueError) as error:
        if config.judge.model == "policy":
            raise
        raise type(error)(str(error).replace("policy.model", "judge.model", 1)) from None


def require_checked(config: RunConfig, run: Run, judges: Sequence[Any]) -> dict[str, Any]:
    """Check that each judge among a training's rewards was measured in this run and is good enough; print its figure.

    Returns:
        {"judge": who judges, on which pairs it was measured, and its agreement}, for `run.json`; {} without a judge.

    Raises:
        ValueError: it was not measured, or is not good enough; the sentence says what to do.
    """
    if not judges:
        return {}
    words = ["grpo-kit", "rewards", "judge-check", "--run", run.name]
    for key in ("model", "served_model"):
        if (value := getattr(config.judge, key)) != getattr(Judge(), key):
            words.append(f"judge.{key}={value}")
    command = f"with `{shlex.join(words)}`."
    if not run.judge.exists():
        raise ValueError(f"A judge is among the rewards, and nobody has measured it. Measure it {command}")
    report = read_json(run.judge)
    then, served = report["judge"], config.judge.served_model
    for judge in judges:
        now = describe_judge(config, judge) | ({"served_model": served} if served else {})
        if changed := [name for name in now if now[name] != then.get(name)]:
            difference, remedy = f"another {changed[0]}", "Measure it"
            if changed[0] in ("model", "served_model"):
                key, measured = f"judge.{changed[0]}", then.get(changed[0])
                difference = f"{key} is {now[changed[0]]}, and {measured} was measured"
                remedy = f"Write {key}={measured} to train by that one, or measure this one"
            raise ValueError(
                f"The judge of run {run.name!r} is not the one that was measured ({difference}). {remedy} {command}"
            )
    if fault := find_fault(report, config.judge.threshold):
        raise ValueError(f"The judge may not train: {fault.reason}. {fault.remedy}")
    if processes.is_first():
        agreement, (low, high) = report["agreement"]["value"], report["agreement"]["ci95"]
        print(
            f"The judge {config.judge.model} agrees with {agreement:.1%} of {report['judged']} known winners (95 % "
            f"{low:.1%} to {high:.1%}).{' ' + SELF if config.judge.model == 'policy' else ''}",
            flush=True,
        )
    return {"judge": {name: report[name] for name in ("judge", "pairs", "agreement")}}


def hand_over(
    config: RunConfig, run: Run, judges: Iterable[Any], policy: tuple[Any, Any], is_measured: bool = True
) -> None:
    """Give judges what they judge with: a model and the section `judge`.

    Args:
        config: the run's.
        run: keeps the verdicts of a server, in `judge.jsonl`.
        judges: as `find_judge` finds them.
        policy: (model, tokenizer) that judges; it is not used where a server does.
        is_measured: whether the run has a record of them; a server of one model may have another one by now, so that
            the one in the record is asked for.
    """
    settings = config.judge.arguments()
    if config.judge.is_server:
        settings["cache"] = run.verdicts
        if is_measured:
            settings["served_model"] = settings["served_model"] or read_json(run.judge)["judge"]["served_model"]
    for judge in judges:
        judge.use_policy(*policy, **settings)
        if not config.judge.is_server:
            judge.compare = _with_relief(policy[0], judge.compare)


def _with_relief(model: Any, compare: Callable[..., Any]) -> Callable[..., Any]:
    """Comparisons that are made again where the GPU's memory ran out and experts could move to the host."""
    return lambda pairs: with_relief(model, lambda: compare(pairs), "judging")


def _served_model(judge: Any) -> str | None:
    return getattr(getattr(judge, "server", None), "served_model", None)


def _explain_silence(judge: Any) -> str:
    """Why the judge last gave no verdict; a judge of the user's may not say."""
    explain = getattr(judge, "explain_silence", None)
    return (explain and explain()) or "It does not say why."


def copy_record(run: Run, again: Run) -> None:
    """Give a run that repeats another one the record of its judge, and the verdicts of a server."""
    for source, target in ((run.judge, again.judge), (run.verdicts, again.verdicts)):
        if source.exists():
            write_text(target, source.read_text(encoding="utf-8"))
