"""The log-probs of the reference, computed once and kept in `prefer/reference.json`.

The reference is the policy before this stage. A training that goes on reads them again, and so compares with the same
reference to the last bit, also where a GPU would compute the last bits otherwise the second time.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_kit.runs.files import hash_of, to_json, write_text
from grpo_kit.runs.reading import read_json, remedy_for
from grpo_kit.training.preferences.trainer import Reference

Scores = tuple[list[float], list[float]]  # of the chosen and of the rejected completions


def keep_reference(
    path: Path, made_from: dict[str, Any], count: int, goes_on: bool, compute: Callable[[], Scores]
) -> Reference:
    """Read the log-probs that are kept, or compute and keep them.

    Args:
        path: of `reference.json`.
        made_from: what they depend on: the policy, and the sha256 of its adapter and of the pairs.
        count: of the pairs.
        goes_on: whether steps were taken with them already. Then they are not computed again.
        compute: (chosen, rejected) log-probs of the policy as it is now.

    Raises:
        ValueError: steps were taken with a reference that is gone, or was made from another policy or other pairs; or
            the file is damaged; or a log-prob is not finite.
    """
    kept = read_json(path) if path.exists() else None
    if kept is not None and kept["made_from"] == made_from:
        scores = kept["chosen"], kept["rejected"]
        if any(len(column) != count for column in scores) or _count_bad(scores):
            raise ValueError(
                f"{path} is damaged: it has other log-probs than {count} finite ones for each side. {remedy_for(path)}"
            )
    elif goes_on:
        what = "is of another policy or of other pairs than this training" if kept else "is gone"
        raise ValueError(
            f"{path} {what}, and the steps so far were taken with it. Put back a copy of it, or begin again with "
            "--force (run.force=true)."
        )
    else:
        scores = compute()
        if bad := _count_bad(scores):
            raise ValueError(
                f"{bad} of the {2 * count} log-probs of the policy before this stage are not finite, so no pair can be "
                "compared with it. Train the stage before again with a lower learning rate."
            )
        content = {"made_from": made_from, "chosen": scores[0], "rejected": scores[1]}
        write_text(path, to_json(content) + "\n")
    return Reference(*scores, hash_of(path))


def _count_bad(scores: Scores) -> int:
    return sum(not math.isfinite(value) for column in scores for value in column)
