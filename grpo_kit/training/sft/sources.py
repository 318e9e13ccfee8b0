"""Where the texts of the stage `sft` come from, and which of them are left out before the policy's template sees them.

A source is located first, which reads nothing, and then read. Texts of others that ask, hold or give away a problem of
the run's validation rows, its test rows or its evaluation sets are left out, with all texts of their conversation. A
problem in other words is not found.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.data import leaks
from grpo_kit.data.files import SUFFIX_WORDS, TOO_DEEP, Table, get_suffix, open_table
from grpo_kit.data.hub import open_hub_set
from grpo_kit.data.puzzles import traces
from grpo_kit.data.sources import locate_source
from grpo_kit.environments.reading import Refused
from grpo_kit.evaluation.problem_sets import load_set
from grpo_kit.runs.files import to_json
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.training.sft import right_completions
from grpo_kit.training.sft.conversations import Example, LeftOut, read_examples, require_columns

OF_RUN, TRACES = "run:", "traces"
SCORER_TOKENS = 7680  # that the challenge's scorer lets a completion have


class TextSource(NamedTuple):
    """A located source of texts: its item in `sft.source`, and the files that it reads."""

    item: str
    files: tuple[Path, ...] = ()


def locate_sources(config: RunConfig, run: Run) -> list[TextSource]:
    """Locate what `sft.source` names. Nothing is read.

    Args:
        config: gives `sft.source`.
        run: the run that is trained.

    Returns:
        The sources in their order.

    Raises:
        ValueError: a source is unknown or named twice, or holds the run's held-out rows.
        FileNotFoundError: a file or run does not exist, or the run has not trained.
    """
    text = config.sft.source
    items = [text] if Path(text).is_file() else [item.strip() for item in text.split(",") if item.strip()]
    if not items or len(items) != len(set(items)):
        raise ValueError(
            f"sft.source is {text!r}; it must name one source or several different ones. Write them as a,b."
        )
    return [_locate(item, config, run) for item in items]


def _locate(item: str, config: RunConfig, run: Run) -> TextSource:
    if item == TRACES:
        return TextSource(item)
    if item.startswith(OF_RUN):
        other = right_completions.find_trained(item.removeprefix(OF_RUN), run)
        return TextSource(item, (other.completions, other.data_file("train")))
    path = Path(item)
    if path.is_file() or get_suffix(path):
        if not path.is_file():
            raise FileNotFoundError(f"sft.source names {item}, which is not an existing file. Check the path.")
        if not get_suffix(path):
            raise ValueError(f"sft.source names {item}, which is not one of {SUFFIX_WORDS}. Convert it to one of them.")
        _refuse_held_out(path, config, run)
        return TextSource(item, (path,))
    if "/" in item and not path.exists():
        return TextSource(item)
    raise ValueError(
        f"sft.source names {item!r}, which is no source of texts to learn from. Name `traces`, `run:NAME` for a "
        "run's right completions, a file, or a set on the Hub (owner/name)."
    )


def _refuse_held_out(path: Path, config: RunConfig, run: Run) -> None:
    held_out = [run.data_file(split) for split in ("val", "test")]
    held_out += [file for name in config.evaluation.sets if name != "test" for file in _files_of(name, config)]
    if any(path.resolve() == other.resolve() for other in held_out):
        raise ValueError(
            f"sft.source names {path}, which holds rows that the run is measured on; learning them would make every "
            "later accuracy worthless. Name another source."
        )


def _files_of(name: str, config: RunConfig) -> tuple[Path, ...]:
    return locate_source(name, config.data).files


def read_sources(
    config: RunConfig, run: Run, sources: Sequence[TextSource], count_tokens: Callable[[list[str]], list[int]]
) -> tuple[list[Example], list[LeftOut], list[dict[str, Any]]]:
    """Read all texts, without those that held-out rows forbid, that repeat another one, or that cannot be used.

    Args:
        config: gives `sft.limit` and `run.seed`, which draw from the texts that are left; the evaluation sets; and the
            words around a problem, for prompts that are plain texts.
        run: gives the held-out rows.
        sources: what `locate_sources` returned.
        count_tokens: takes texts and returns the length of each in the policy's tokens.

    Returns:
        The texts, traces first, then in the order of the sources; those that were left out; and of traces the table by
        family of `data.puzzles.traces.summarise_traces`, for 7,680 tokens and for `grpo.max_completion_length`.

    Raises:
        ValueError: a file cannot be read, lacks the columns, or no text is left; a run has no right completion.
        FileNotFoundError: the Hub does not give a set.
    """
    own: list[Example] = []  # of the run's training rows, which are apart from what it is measured on
    others: list[Example] = []
    left_out: list[LeftOut] = []
    families: list[dict[str, Any]] = []
    for source in sources:
        if source.item == TRACES:
            own, refused, families = _read_traces(config, run, count_tokens)
            left_out += refused
            continue
        found = _read_source(source, config, run)
        others += [each for each in found if isinstance(each, Example)]
        left_out += [each for each in found if isinstance(each, LeftOut)]
    others, leaked = _drop_leaks(others, config, run)
    examples, repeated = _drop_repeated(own + others)
    left_out += leaked + repeated
    if not examples:
        raise ValueError(f"sft.source={config.sft.source} gives no text to learn from. {describe_left_out(left_out)}")
    limit = config.sft.limit
    if limit is not None and limit < len(examples):
        chosen = random.Random(f"texts {config.run.seed}").sample(range(len(examples)), limit)
        examples = [examples[place] for place in sorted(chosen)]
    return examples, left_out, families


def describe_left_out(left_out: Iterable[LeftOut]) -> str:
    """One sentence for each reason: how many texts it left out, and of the first one where it was and why.

    >>> describe_left_out([LeftOut("a.jsonl, line 2", "empty", "the column prompt is empty")])
    '1 left out (empty): a.jsonl, line 2: the column prompt is empty.'
    """
    by_reason: dict[str, list[LeftOut]] = {}
    for each in left_out:
        by_reason.setdefault(each.reason, []).append(each)
    return " ".join(
        f"{len(group)} left out ({reason}): {group[0].place}: {group[0].detail.rstrip('.')}."
        for reason, group in by_reason.items()
    )


def _read_source(source: TextSource, config: RunConfig, run: Run) -> list[Example | LeftOut]:
    if source.item.startswith(OF_RUN):
        found, reasons = right_completions.read_right(source.item.removeprefix(OF_RUN), run, config)
        return [*found, *(LeftOut(source.item, reason, detail) for reason, detail in reasons)]
    too_deep: list[LeftOut] = []
    table, place = _open(source, config, too_deep)
    if not table.columns:
        left_out = f" {describe_left_out(too_deep)}" if too_deep else ""
        raise ValueError(
            f"{place} holds 0 rows; there is nothing to learn from.{left_out} Give a source that is not empty."
        )
    require_columns(table.columns, place)
    return [*_read_rows(table, place, config), *too_deep]


def _read_traces(
    config: RunConfig, run: Run, count_tokens: Callable[[list[str]], list[int]]
) -> tuple[list[Example], list[LeftOut], list[dict[str, Any]]]:
    """The solvers' traces of the run's training rows; a row that asks for no thought keeps its answer alone."""
    rows = read_lines(run.data_file("train"))
    traced, refused = traces.solver_traces(rows, count_tokens)
    if not traced:
        reasons = Counter(each["reason"] for each in refused).most_common()
        words = ", ".join(f"{count} {reason}" for reason, count in reasons)
        raise ValueError(
            f"sft.source names traces, and the solvers explain none of the {len(rows)} training rows ({words}). "
            "Prepare puzzles with data.source=puzzles, or name other texts in sft.source."
        )
    settings = {row["id"]: row.get("enable_thinking") for row in rows}
    examples = []
    for row in traced:
        (reply,), setting = row["completion"], settings[row["id"]]
        if setting is False:
            reply = {key: value for key, value in reply.items() if key != "reasoning_content"}
        examples.append(Example(row["prompt"], reply, f"traces, row {row['id']}", enable_thinking=setting))
    left_out = [LeftOut(f"traces, row {rows[each['row']]['id']}", each["reason"], each["detail"]) for each in refused]
    limits = sorted({SCORER_TOKENS, config.grpo.max_completion_length})
    return examples, left_out, traces.summarise_traces(traced, refused, limits)


def _open(source: TextSource, config: RunConfig, too_deep: list[LeftOut]) -> tuple[Table, str]:
    """The table of a source, which adds its lines that cannot be read to `too_deep`, and the name of its place."""
    if source.files:
        name = source.files[0].name

        def leave_out(line: int) -> None:
            too_deep.append(LeftOut(f"{name}, line {line}", "too deep", f"it {TOO_DEEP}"))

        return open_table(source.files[0], leave_out), name
    recipe = locate_source(source.item, config.data).recipe
    try:
        return open_hub_set(recipe, None), source.item
    except OSError as error:
        raise FileNotFoundError(
            f"sft.source names {source.item}, which is no file here, and the Hub did not give it "
            f"({' '.join(str(error).split())[:200]}). Check the name, or download it and give its file."
        ) from None


def _read_rows(table: Table, place: str, config: RunConfig) -> Iterator[Example | LeftOut]:
    suffix, system = config.data.prompt_suffix, config.data.system_prompt
    for line, row in table.read_rows(None):
        where = f"{place}, line {line}"
        try:
            yield from read_examples(row, where, suffix, system)
        except Refused as refused:
            yield LeftOut(where, *refused.args)


def _drop_repeated(examples: list[Example]) -> tuple[list[Example], list[LeftOut]]:
    first: dict[str, Example] = {}
    left_out = []
    for example in examples:
        key = to_json([example.prompt, example.reply, example.tools, example.enable_thinking], sort_keys=True)
        if (kept := first.setdefault(key, example)) is not example:
            left_out.append(LeftOut(example.place, "repeated", f"equals {kept.place}"))
    return list(first.values()), left_out


def _drop_leaks(examples: list[Example], config: RunConfig, run: Run) -> tuple[list[Example], list[LeftOut]]:
    """The texts without those of rows in which any turn asks, holds or gives away a held-out problem."""
    held_out = {name: [_problem(row["prompt"], config) for row in rows] for name, rows in _held_out_rows(config, run)}
    suffix = config.data.prompt_suffix
    rows: dict[int, list[int]] = {}  # the texts of one row share its first turn
    for number, example in enumerate(examples):
        rows.setdefault(id(example.prompt[0]), []).append(number)
    asked: dict[str, list[int]] = {}
    said: dict[str, list[int]] = {}
    for row, numbers in rows.items():
        last = examples[numbers[-1]]
        asked.setdefault(last.problem.removesuffix(suffix), []).append(row)
        for turn in (*last.prompt, *(examples[number].reply for number in numbers)):
            if turn["role"] in ("system", "user"):
                asked.setdefault(turn["content"].removesuffix(suffix), []).append(row)
            for text in (turn["content"], turn.get("reasoning_content", "")):
                said.setdefault(text, []).append(row)
    dropped: dict[int, tuple[str, str]] = {}
    texts = list(asked)
    for place, reason in leaks.find_leaks(texts, held_out).dropped.items():
        dropped |= dict.fromkeys(asked[texts[place]], reason)
    texts = list(said)
    for place in leaks.find_contained(texts, [problem for problems in held_out.values() for problem in problems]):
        words = " ".join(texts[place].split())[:80]
        for row in said[texts[place]]:
            dropped.setdefault(row, ("leaked, contained", f"a turn holds a whole held-out problem: {words}"))
    reasons = {number: dropped[row] for row, numbers in rows.items() if row in dropped for number in numbers}
    left_out = [LeftOut(examples[number].place, *reason) for number, reason in sorted(reasons.items())]
    return [example for number, example in enumerate(examples) if number not in reasons], left_out


def _held_out_rows(config: RunConfig, run: Run) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name, rows) of each set that the run is measured on."""
    yield "validation rows", read_lines(run.data_file("val"))
    everything = replace(config, data=replace(config.data, limit=None))
    for name in dict.fromkeys(["test", *config.evaluation.sets]):
        yield f"evaluation set {name}", load_set(name, everything, run)


def _problem(prompt: str | list[dict[str, Any]], config: RunConfig) -> str:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "user")
    return text.removesuffix(config.data.prompt_suffix)
