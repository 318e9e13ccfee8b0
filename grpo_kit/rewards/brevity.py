r"""Length shaping in tokens: three published penalties, none of which can pay by itself.

Paste this file into a notebook cell; `soft_overlong` needs `pip install trl`, the others nothing.

  soft_overlong(limit, cache)
      DAPO eq. 13 (arXiv 2503.14476): 0 up to limit - cache tokens, then down to -1 at the limit.
      This is TRL's own get_soft_overlong_punishment, with its arguments checked.
  cosine(limit, correct)
      arXiv 2502.03373, C.1: right earns 1.0 when short and 0.5 at the limit, wrong -1.0 when short
      and -0.5 at the limit; clamped there, or the cosine would rise again. TRL's is tied to its own
      answer checker; this one takes yours.
  kimi(correct, num_generations)
      Kimi k1.5 (arXiv 2501.12599), 2.3.3: within a group, the completions that were drawn for one
      prompt together, 0.5 for the shortest and -0.5 for the longest; a wrong one earns at most 0.

Each call returns a reward function. `correct` is the reward that decides right (above 0.5) or
wrong; where it gives None, so do these. Against repetition use TRL's own,
`trl.rewards.get_repetition_penalty_reward`.
"""

import math
from collections.abc import Callable, Sequence

Reward = Callable[..., list]


def soft_overlong(limit: int, cache: int) -> Reward:
    """TRL's soft overlong punishment, in [-1, 0]; limit and cache in tokens, 0 < cache <= limit.

    Raises ValueError for other values, ImportError without TRL.
    """
    if not 0 < cache <= limit:
        raise ValueError(
            f"cache is {cache} and limit {limit} tokens; the penalty starts at limit - cache. Set 0 < cache <= limit."
        )
    from trl.rewards import get_soft_overlong_punishment

    return get_soft_overlong_punishment(max_completion_len=limit, soft_punish_cache=cache)


def cosine(limit: int, correct: Reward) -> Reward:
    """Rewards in [-1, 1]: right 1.0 to 0.5, wrong -1.0 to -0.5, by length up to `limit` tokens."""
    if limit < 1:
        raise ValueError(f"limit is {limit} tokens; lengths are measured against it. Set it to at least 1.")

    def cosine_length_reward(completions: Sequence, completion_ids: Sequence, **kwargs) -> list:
        verdicts = correct(completions=completions, completion_ids=completion_ids, **kwargs)
        lengths = _lengths(completions, completion_ids)
        rewards = []
        for verdict, length in zip(verdicts, lengths, strict=True):
            shortness = (1 + math.cos(math.pi * min(length, limit) / limit)) / 2  # 1 at no tokens, 0 at the limit
            right = verdict is not None and verdict > 0.5
            rewards.append(None if verdict is None else 0.5 + shortness / 2 if right else -0.5 - shortness / 2)
        return rewards

    return cosine_length_reward


def kimi(correct: Reward, num_generations: int | None = None) -> Reward:
    """Rewards in [-0.5, 0.5] by length within the group.

    Args:
        correct: the reward that decides right (above 0.5) or wrong.
        num_generations: completions in a group; they follow each other, as TRL orders them. None takes the number from
            the trainer that calls the reward. Where none does, completions in a row with the same prompt are a group.

    Returns:
        A reward function. It raises ValueError where the completions do not fall into groups of that size with one
        prompt each.
    """

    def kimi_length_reward(completions: Sequence, completion_ids: Sequence, prompts: Sequence, **kwargs) -> list:
        verdicts = correct(completions=completions, completion_ids=completion_ids, prompts=prompts, **kwargs)
        lengths = _lengths(completions, completion_ids)
        if len(prompts) != len(lengths):
            raise ValueError(
                f"kimi got {len(lengths)} completions and {len(prompts)} prompts; a group has one prompt. Pass each "
                "completion's prompt."
            )
        rewards = []
        for group in _groups(prompts, num_generations or _trainers_group_size(kwargs.get("log_metric"))):
            short, long = min(lengths[i] for i in group), max(lengths[i] for i in group)
            for i in group:
                shortness = 0.5 - (lengths[i] - short) / (long - short) if long > short else 0.0
                right = verdicts[i] is not None and verdicts[i] > 0.5
                rewards.append(None if verdicts[i] is None else shortness if right else min(0.0, shortness))
        return rewards

    return kimi_length_reward


def _trainers_group_size(log_metric: Callable | None) -> int | None:
    """The num_generations of the GRPOTrainer whose method TRL passes as log_metric, None without a trainer."""
    trainer = getattr(log_metric, "__self__", None)
    training = getattr(getattr(trainer, "model", None), "training", True)
    return getattr(trainer, "num_generations" if training else "num_generations_eval", None)


def _groups(prompts: Sequence, size: int | None) -> list[range]:
    """The places of each group: `size` completions in a row, or as many in a row as have the same prompt."""
    count = len(prompts)
    if size is None:
        starts = [i for i in range(count) if i == 0 or prompts[i] != prompts[i - 1]]
    else:
        starts = list(range(0, count, size))
        if count % size or any(prompts[i] != prompts[i // size * size] for i in range(count)):
            raise ValueError(
                f"kimi got {count} completions, which are not groups of {size} with one prompt each. Set "
                "num_generations to the trainer's, and let each process sample whole groups."
            )
    return [range(start, end) for start, end in zip(starts, [*starts[1:], count])]


def _lengths(completions: Sequence, completion_ids: Sequence) -> list[int]:
    if len(completions) != len(completion_ids):
        raise ValueError(
            f"got {len(completions)} completions and {len(completion_ids)} completion_ids; lengths "
            "are counted in tokens. Pass TRL's completion_ids, one list per completion."
        )
    return [len(ids) for ids in completion_ids]
