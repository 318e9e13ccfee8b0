"""Turn verdicts into accuracies: a record of each problem; pass@k, avg@n and maj@n over all problems and by group."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_kit.evaluation import intervals
from grpo_kit.evaluation.changes import compare_scores
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.generate import Sample
from grpo_kit.rewards.tools.verdicts import is_right
from grpo_kit.runs.texts import format_change, format_count
from grpo_kit.runs.trained import MEASURED

GROUPS = ("environment", "set", "source", "family")


def judge_problem(
    problem: Problem, samples: Sequence[Sample], rewards: Sequence[float | None], answers: Sequence[str | None] | None
) -> dict[str, Any]:
    """One problem as `before.json` keeps it.

    Args:
        problem: the problem and its row.
        samples: its completions.
        rewards: what the verifier gave each of them; None where it cannot use the reference answer.
        answers: the final answer of each sample, for the majority vote; None for no vote.

    Returns:
        The problem's texts, `completions` (in a world also their `turns`), rewards (`paid`), tokens of `thinking` where
        they were counted, and `score`: the share of
        the samples with reward 1, in [0, 1], None where the reference answer cannot be used. With `answers`, `majority`
        is 1.0 if the most frequent answer has reward 1, else 0.0.
    """
    usable = [reward for reward in rewards if reward is not None]
    record = {"id": problem.row["id"], "set": problem.set}
    record |= {key: problem.row[key] for key in ("environment", "source", "family") if key in problem.row}
    record |= {"prompt": problem.prompt[-1]["content"], "answer": problem.row["answer"]}
    record |= {"score": sum(map(is_right, usable)) / len(usable) if usable else None}
    if answers is not None and usable:
        winner = intervals.majority(answers)
        record["majority"] = float(winner is not None and is_right(rewards[winner]))
    turns = {"turns": [s.turns for s in samples]} if any(s.turns for s in samples) else {}
    thinking = {"thinking": [s.thinking for s in samples]} if all(s.thinking is not None for s in samples) else {}
    return record | {"completions": [s.text for s in samples], "paid": list(rewards)} | turns | thinking


def summarise_problems(problems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy over problems that `judge_problem` recorded.

    Args:
        problems: the records.

    Returns:
        `pass@1` with its interval `ci95` over the `n` problems with a usable reference answer, and the same by group
        under `by`. With several samples per problem, `measures` has the unbiased pass@k for k = 1, 2, 4, ... and all,
        `avg@n` (equal to pass@1) and `maj@n`, each as `value` and `ci95`.

    Raises:
        ValueError: no reference answer can be used.
    """
    scored = [problem for problem in problems if problem["score"] is not None]
    if not scored:
        raise ValueError(
            f"The verifier could use none of the {len(problems)} reference answers, so there is no accuracy. "
            "Check data.columns.answer."
        )
    verdicts = [[is_right(reward) for reward in problem["paid"] if reward is not None] for problem in scored]
    most = min(map(len, verdicts))
    measures = {}
    for k in sorted({most} | {2**power for power in range(most.bit_length()) if 2**power <= most}):
        measures[f"pass@{k}"] = [intervals.pass_at_k(len(right), sum(right), k) for right in verdicts]
    if most > 1:
        measures[f"avg@{most}"] = [problem["score"] for problem in scored]
        if all("majority" in problem for problem in scored):
            measures[f"maj@{most}"] = [problem["majority"] for problem in scored]
    return {
        **_accuracy(scored),
        "measures": {name: _mean(scores) for name, scores in measures.items()},
        "by": {
            kind: {name: _accuracy(members) for name, members in named.items()}
            for kind, named in _group_problems(scored).items()
        },
    }


def compare_groups(before: Mapping[str, dict[str, Any]], after: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`changes.compare_scores` within each set, source and family, where there are several.

    Args:
        before: the records of the first measurement, by problem id.
        after: the records of the second.

    Returns:
        {kind of group: {name: `before`, `after` and the comparison without its sentence}}.
    """
    shared = [p for key, p in before.items() if p["score"] is not None and after.get(key, {}).get("score") is not None]
    comparisons: dict[str, Any] = {}
    for kind, named in _group_problems(shared).items():
        for name, members in named.items():
            keys = [problem["id"] for problem in members]
            old, new = ({key: side[key]["score"] for key in keys} for side in (before, after))
            comparison = compare_scores(old, new)
            del comparison["words"]
            means = {"before": sum(old.values()) / len(keys), "after": sum(new.values()) / len(keys)}
            comparisons.setdefault(kind, {})[name] = means | comparison
    return comparisons


def describe_environments(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What became of each environment, and of all together.

    Args:
        comparisons: those of `compare_groups` within each environment.

    Returns:
        A sentence for each, one for all, and a warning where one fell while another rose. An environment gained or
        lost where `changes.compare_scores` calls its paired difference real; a change may also have been missed.

    Example:
        >>> change = {"before": 0.5, "after": 0.7, "difference": 0.2, "difference_ci95": [0.1, 0.3], "real": True}
        >>> describe_environments({"math": change | {"gained": 20, "lost": 2, "n": 90}})[0]
        'math gained: 0.500 before, 0.700 after, +20.0 points (95 % +10.0 to +30.0); 20 tasks gained, 2 lost, of 90.'
    """
    if not comparisons:
        return []
    names: dict[str, list[str]] = {"gained": [], "lost": [], "shows no change": []}
    sentences = []
    for name, part in comparisons.items():
        points, low, high = (format_change(100 * each) for each in (part["difference"], *part["difference_ci95"]))
        change = ("gained" if part["difference"] > 0 else "lost") if part["real"] else "shows no change"
        names[change].append(name)
        sentences.append(
            f"{name} {change}: {part['before']:.3f} before, {part['after']:.3f} after, {points} points "
            f"(95 % {low} to {high}); {format_count(part['gained'], 'task')} gained, {part['lost']} lost, of "
            f"{part['n']}."
        )
    counts = []
    for change, own in names.items():
        verb = change if len(own) == 1 else change.replace("shows", "show")
        counts += [f"{len(own)} {verb} ({', '.join(own)})"] * bool(own)
    sentences.append(f"Of {len(comparisons)} environments: {'; '.join(counts)}.")
    if names["gained"] and names["lost"]:
        sentences.append(
            f"Warning: {', '.join(names['lost'])} fell while {', '.join(names['gained'])} rose. Give what fell a "
            "larger share (data.mix), or hold the policy nearer to the untrained one (grpo.beta, or a lower "
            "grpo.learning_rate)."
        )
    return sentences


def describe_preferences(row: Mapping[str, Any]) -> list[str]:
    """What the stage `prefer` did to accuracy, in a sentence, and more where it lost; nothing for other stages.

    Args:
        row: of the report's `stages`.
    """
    if row["measurement"] != MEASURED["prefer"]:
        return []
    change, low, high = (format_change(100 * points) for points in (row["difference"], *row["difference_ci95"]))
    sentence = (
        f"Learning from pairs changed accuracy by {change} points (95 % {low} to {high}) on "
        f"{format_count(row['n'], 'problem')}."
    )
    if row["real"] and row["difference"] < 0:
        sentence += (
            " It fell, so the pairs taught something else than being right: look at their lengths in "
            "prefer/summary.json, and lower dpo.learning_rate or raise dpo.beta. The adapter of the stage before is "
            "still there (`grpo-kit package --adapter`)."
        )
    return [sentence]


def _group_problems(problems: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Problems by kind of group and name; left out is a kind with only one name (or none).

    So is one that groups the problems as an earlier kind does, such as the sources where each has its environment.
    """
    groups = {}
    for kind in GROUPS:
        named: dict[str, list[dict[str, Any]]] = {}
        for problem in problems:
            if problem.get(kind) is not None:
                named.setdefault(str(problem[kind]), []).append(problem)
        if len(named) > 1 and list(named.values()) not in [list(group.values()) for group in groups.values()]:
            groups[kind] = named
    return groups


def _mean(scores: Sequence[float]) -> dict[str, Any]:
    return {"value": sum(scores) / len(scores), "ci95": list(intervals.mean_interval(scores))}


def _accuracy(problems: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean = _mean([problem["score"] for problem in problems])
    return {"pass@1": mean["value"], "ci95": mean["ci95"], "n": len(problems)}
