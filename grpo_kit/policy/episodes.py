"""Completions of data rows: one reply, or, where a row has a world, turns until the policy calls no tool any more.

Every turn is sampled by `TransformersEngine`, that is by the kit's own loop. What stands between two turns is appended
as token ids, so nothing is tokenized twice, and `max_completion_length` covers all turns with the tools' results. The
rules are those of training, where TRL's loop does the same: see `tool_calls` and `environments/worlds`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from grpo_kit.config import Evaluation
from grpo_kit.environments.worlds.episode import Episode, call_tool, calls_of
from grpo_kit.environments.worlds.loading import Worlds
from grpo_kit.policy import generate
from grpo_kit.policy.chat import Messages, completion_text, encode_prompt, row_thinking
from grpo_kit.policy.generate import Sample, TransformersEngine
from grpo_kit.policy.tool_calls import encode_results, read_reply
from grpo_kit.runs import processes


class Start(NamedTuple):
    """Where a completion begins: the prompt's token ids, the world that it acts in, if any, and whether it thinks.

    `budget` are the tokens of thinking after which a thought is closed by force, in each turn; None for no budget.
    """

    prompt_ids: list[int]
    episode: Episode | None
    enable_thinking: bool
    budget: int | None = None


def start(
    tokenizer: Any,
    prompt: Messages,
    enable_thinking: bool,
    row: dict[str, Any] | None = None,
    worlds: Worlds | None = None,
    budget: int | None = None,
) -> Start:
    """Begin a row's episode and write its prompt.

    Args:
        tokenizer: the policy's.
        prompt: the conversation.
        enable_thinking: the run's setting; one on a turn of the conversation counts for the turns behind it.
        row: the data row.
        worlds: of the run; None without worlds.
        budget: tokens of thinking after which a thought is closed by force; None for no budget.
    """
    episode, tools = None, None
    if worlds and row is not None:
        episode, prompt = worlds.begin(row, prompt)
        tools = worlds.tools_of(row)
    own = row_thinking(prompt)
    prompt_ids = encode_prompt(tokenizer, prompt, enable_thinking, tools)
    return Start(prompt_ids, episode, enable_thinking if own is None else own, budget)


def sample(
    engine: Any,
    starts: Sequence[Start],
    seed: int,
    most_turns: int = 0,
    on_finish: Callable[[int], None] | None = None,
) -> list[Sample]:
    """Sample one completion for each start.

    Args:
        engine: a `TransformersEngine`; another engine where no start has a world.
        starts: as `start` makes them; their episodes are left as their completions leave them.
        seed: determines all completions. The turns behind the first have seeds of their own, made from it.
        most_turns: the largest number of turns of a completion whose calls are carried out.
        on_finish: called with the number of finished completions, each time that some are finished.
    """
    prompts, budgets = [begin.prompt_ids for begin in starts], [begin.budget for begin in starts]
    if not any(begin.episode for begin in starts):
        told = {"on_finish": on_finish} if isinstance(engine, TransformersEngine) else {}
        return engine(prompts, seed, **told, **({"budgets": budgets} if any(budgets) else {}))
    tokenizer, ends = engine.tokenizer, generate.find_end_tokens(engine.model, engine.tokenizer)
    limits = generate.completion_limits(prompts, engine.evaluation, engine.max_model_len)
    ids: list[list[int]] = [[] for _ in starts]  # of the completions so far, with the results
    turns: list[Messages] = [[] for _ in starts]
    tokens, found_no_room, going, turn = [0] * len(starts), set(), list(range(len(starts))), 0
    while going:
        drawn = engine.sample_ids(
            [prompts[i] + ids[i] for i in going],
            [limits[i] - len(ids[i]) for i in going],
            generate.portion_seed(seed, turn) if turn else seed,
            **({"budgets": [budgets[i] for i in going]} if any(budgets) else {}),
        )
        turn, went, going = turn + 1, going, []
        for i, reply in zip(went, drawn, strict=True):
            before, episode = prompts[i] + ids[i], starts[i].episode
            ids[i], tokens[i] = ids[i] + reply, tokens[i] + len(reply)
            if episode is None:
                continue
            turns[i].append(read_reply(tokenizer, reply, prefix=before, tools=episode.schemas))
            calls = calls_of(turns[i][-1])
            if not calls or turn > most_turns:
                continue
            results = [
                {"role": "tool", "name": call["name"], "content": call_tool(episode, call["name"], call["arguments"])}
                for call in calls
            ]
            between = encode_results(tokenizer, results, starts[i].enable_thinking)
            if len(ids[i]) + len(between) >= limits[i]:
                found_no_room.add(i)
                continue
            ids[i], turns[i] = ids[i] + between, turns[i] + results
            going.append(i)
        if on_finish:
            on_finish(len(starts) - len(going))
    samples = [
        generate.make_sample(tokenizer, ids[i], ends)
        if starts[i].episode is None
        else Sample(completion_text(turns[i]), tokens[i], ids[i][-1] in ends and i not in found_no_room, turns[i])
        for i in range(len(starts))
    ]
    return generate.add_thinking(tokenizer, samples, prompts, ids) if engine.counts_thinking else samples


def sample_completions(
    model: Any,
    tokenizer: Any,
    conversations: list[Messages],
    evaluation: Evaluation,
    seed: int,
    enable_thinking: bool = True,
    progress: Callable[[int, int], None] | None = None,
    rows: Sequence[dict[str, Any]] | None = None,
    worlds: Worlds | None = None,
    budgets: Sequence[int | None] | None = None,
) -> list[Sample]:
    """Sample one completion for each conversation, in order.

    With several processes, each samples every n-th portion, and all of them return all completions.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        conversations: the prompts as messages.
        evaluation: sampling settings and batch size.
        seed: determines all completions.
        enable_thinking: passed to the chat template.
        progress: called with (completions so far, all completions), while they are sampled.
        rows: the data row of each conversation, for its world.
        worlds: of the rows; None without worlds.
        budgets: of each conversation the tokens of thinking after which a thought is closed by force, None for no
            budget; None: none has one.
    """
    nothing = [None] * len(conversations)
    starts = [
        start(tokenizer, messages, enable_thinking, row, worlds, budget)
        for messages, row, budget in zip(conversations, rows or nothing, budgets or nothing, strict=True)
    ]
    prompt_ids = [begin.prompt_ids for begin in starts]
    engine, samples = TransformersEngine(model, tokenizer, evaluation), {}

    def report(finished: int = 0) -> None:
        if progress:
            progress(len(samples) + finished, len(prompt_ids))

    for number, portion in enumerate(generate.make_portions(prompt_ids, evaluation.batch_size)):
        if number % processes.process_count() == processes.process_rank():
            seed_here = generate.portion_seed(seed, number)
            most = worlds.most_turns if worlds else 0
            samples |= zip(portion, sample(engine, [starts[i] for i in portion], seed_here, most, report), strict=True)
        report()
    samples = dict(processes.all_gather(list(samples.items())))
    return [samples[i] for i in range(len(prompt_ids))]
