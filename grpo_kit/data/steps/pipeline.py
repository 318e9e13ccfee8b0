"""The steps of a preparation: rows are read, cleaned, kept apart from evaluation sets and deduplicated.

Each step looks at the rows that no earlier step has dropped.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from grpo_kit.config import MATH, RunConfig
from grpo_kit.config.environments import KNOWN
from grpo_kit.data import cleaning, gold_answers, sources
from grpo_kit.data.columns import SourceRow
from grpo_kit.data.steps.finished import FinishedSteps
from grpo_kit.data.steps.row import Row
from grpo_kit.environments.office import WORLDS
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.policy.chat import make_token_counter
from grpo_kit.rewards.tools.calling import reward_name
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.rewards.tools.routing import is_judged

TOKEN_BATCH = 1000  # prompts whose tokens are counted at a time
Reason = tuple[str, str]  # (name of the reason, detail about the row)
Progress = Callable[[int, int, str], None]  # (step, number of steps, name of the step)


class Pipeline:
    """The rows of all sources, and the reason of each row that was dropped.

    Attributes:
        rows: all rows in the order they were read; a row's place in this list is its number.
        dropped: the reason of each dropped row, by number, in the order of the steps.
        counts: `rows` and `rows_sha256` of each source, by the source's name, and `notes` on how it was read, if any.
    """

    STEPS = ("reading", "cleaning", "tokens", "golds", "leaks", "duplicates", "writing")

    def __init__(self, config: RunConfig, finished: FinishedSteps, progress: Progress) -> None:
        self.config, self.finished, self._progress = config, finished, progress
        self.rows: list[Row] = []
        self.dropped: dict[int, Reason] = {}
        self.counts: dict[str, dict[str, Any]] = {}

    def announce(self, step: str) -> None:
        """Report the step that begins, or "done" after the last one."""
        self._progress([*self.STEPS, "done"].index(step), len(self.STEPS), step)

    def kept(self) -> list[int]:
        """Numbers of the rows that no step has dropped."""
        return [number for number in range(len(self.rows)) if number not in self.dropped]

    def kept_ids(self) -> dict[int, str]:
        """The id of each row that is kept, by number."""
        return {number: self.rows[number].id for number in self.kept()}

    def label(self, number: int) -> str:
        """Where a row came from, for people."""
        return f"{self.rows[number].source}, line {self.rows[number].line}"

    def read(self, training: Sequence[sources.Source]) -> None:
        """Read all rows of the training sources, and drop those that their recipes drop."""
        self.announce("reading")
        for position, source in enumerate(training):
            digest, begin = hashlib.sha256(), len(self.rows)
            notes, *source_rows = self.finished.run(f"rows-{position}", self._read_source(source))
            for fields in source_rows:
                row = SourceRow(*fields)
                digest.update(f"{row.problem}\0{row.gold}\0{row.system and row.system + chr(0)}".encode())
                if row.columns is not None:
                    digest.update(json.dumps([row.prompt, row.columns], sort_keys=True).encode())
                if row.reason:
                    self.dropped[len(self.rows)] = (row.reason, row.detail)
                has_world = self.config.world_of(row.environment) is not None
                world = json.dumps([row.environment, row.columns], sort_keys=True) if has_world else ""
                self.rows.append(Row(source.name, row.line, row.problem, row.gold, row.system, *row[-3:], world))
            counts = {"rows": len(self.rows) - begin, "rows_sha256": digest.hexdigest()}
            self.counts[source.name] = counts | ({"notes": notes} if notes else {})

    def _read_source(self, source: sources.Source) -> Iterator[Any]:
        """The notes on a source, then its rows."""
        notes: list[str] = []
        rows = list(sources.read_source(source, self.config.data, self.config.run.seed, notes.append))
        yield notes
        yield from rows

    def environments(self) -> dict[str, int]:
        """How many rows are kept of each environment, math first and the others by their names."""
        counts = Counter(self.rows[number].environment for number in self.kept())
        return {name: counts[name] for name in sorted(counts, key=lambda name: (name != MATH, name))}

    def refuse_emptied(self, environments: Iterable[str]) -> None:
        """Raise ValueError where every row of an environment was dropped, with the most frequent reason."""
        reasons: dict[str, Counter[Reason]] = {}
        for number, reason in self.dropped.items():
            reasons.setdefault(self.rows[number].environment, Counter())[reason] += 1
        for name in sorted(reasons.keys() - set(environments)):
            ((reason, detail), count) = reasons[name].most_common(1)[0]
            raise ValueError(
                f"No row of the environment {name} can be used; {count} were dropped for {reason!r}: {detail}. Correct "
                "them, or leave them out."
            )

    def first_tasks(self) -> list[Row]:
        """The first kept row of each environment beside math."""
        first: dict[str, Row] = {}
        for row in (self.rows[number] for number in self.kept()):
            first.setdefault(row.environment, row)
        return [row for name, row in first.items() if name != MATH]

    def clean(self, verifier: gold_answers.Verifier) -> None:
        """Drop rows that are unfit by their text, prompts that are too long, and golds that the verifier cannot use."""
        self.announce("cleaning")
        unfit = {
            number: cleaning.find_unfit_reason(self.rows[number].problem, self.rows[number].answer)
            for number in self._math()
        }
        for rule in cleaning.FILTERS:
            self.dropped |= {number: rule[:2] for number, reason in unfit.items() if reason == rule.reason}
        if self.config.data.max_prompt_tokens:
            self.announce("tokens")
            self._drop(self.finished.run("tokens", self._find_long_prompts(self.config.data.max_prompt_tokens)))
        self.announce("golds")
        self._drop(self.finished.run("golds", self._find_unusable_golds(verifier)))
        # A row with a world was judged when it was read; its reward can say nothing without an episode.
        if others := [name for name in self.environments() if name in KNOWN and name not in WORLDS]:
            self._drop(self.finished.run("tasks", self._find_unusable_tasks(others)))
        if not self.kept():
            counts, details = (
                Counter(reason for reason, _ in self.dropped.values()),
                dict(reversed(self.dropped.values())),
            )
            reasons = "; ".join(f"{count} with {reason}: {details[reason]}" for reason, count in counts.items())
            raise ValueError(
                f"{self.config.data.source} has no usable row ({reasons}). If other columns hold problem and gold, "
                "name them with data.columns.prompt and data.columns.answer."
            )

    def drop_leaks(self, held_out: Mapping[str, Iterable[SourceRow]]) -> dict[str, dict[str, int]]:
        """Drop problems that are in an evaluation set or give one of its problems away.

        Args:
            held_out: rows of each evaluation set, by its name.

        Returns:
            For each set the counts of `leaks.find_leaks`; {} without a set.
        """
        from grpo_kit.data import leaks

        self.announce("leaks")
        if not held_out:
            return {}
        numbers = self.kept()

        def find() -> Iterator[Any]:
            texts = {name: [row.problem for row in rows] for name, rows in held_out.items()}
            result = leaks.find_leaks([self.rows[number].problem for number in numbers], texts)
            yield result.report
            yield from ((numbers[place], *reason) for place, reason in result.dropped.items())

        report, *dropped = self.finished.run("leaks", find())
        self._drop(dropped)
        return report

    def drop_duplicates(self, verifier: gold_answers.Verifier) -> dict[int, int]:
        """Drop repeated problems.

        Args:
            verifier: decides which golds are the same.

        Returns:
            Of the kept rows that are variants of another one: number to the number that it is tied to.
        """
        from grpo_kit.data import duplicates

        self.announce("duplicates")
        numbers, others = self._math(), [n for n in self.kept() if self.rows[n].environment != MATH]

        def find() -> Iterator[Any]:
            result = duplicates.find_duplicates(
                [self.rows[number].problem for number in numbers],
                [self.rows[number].answer for number in numbers],
                gold_answers.make_gold_comparison(verifier),
                lambda place: self.label(numbers[place]),
            )
            yield {str(numbers[place]): numbers[tied] for place, tied in result.ties.items()}
            yield from ((numbers[place], *reason) for place, reason in result.dropped.items())
            first: dict[str, int] = {}  # tasks are alike in their wording, so only equal ones count as repeated
            for number in others:
                if (kept := first.setdefault(self.rows[number].id, number)) != number:
                    yield number, "repeated problem", f"equals {self.label(kept)}"

        ties, *dropped = self.finished.run("duplicates", find())
        self._drop(dropped)
        return {int(number): tied for number, tied in ties.items()}

    def _math(self) -> list[int]:
        return [number for number in self.kept() if self.rows[number].environment == MATH]

    def _drop(self, dropped: Iterable[tuple[int, str, str]]) -> None:
        self.dropped |= {number: (reason, detail) for number, reason, detail in dropped}

    def _find_long_prompts(self, limit: int) -> Iterator[tuple[int, str, str]]:
        count_tokens = make_token_counter(self.config.policy)
        numbers, data = self.kept(), self.config.data
        worlds = load_worlds(self.config, {self.rows[number].environment for number in numbers})
        for start in range(0, len(numbers), TOKEN_BATCH):
            batch = numbers[start : start + TOKEN_BATCH]
            rows = (self.rows[number] for number in batch)
            asked = (({"environment": row.environment, **(row.columns or {})}, row.ask(data)) for row in rows)
            for number, length in zip(batch, count_tokens(*worlds.open_prompts(asked)), strict=True):
                if length > limit:
                    yield number, "long prompt", f"{length} tokens"

    def _find_unusable_golds(self, verifier: gold_answers.Verifier) -> Iterator[tuple[int, str, str]]:
        numbers = self._math()
        unusable = gold_answers.find_unusable_golds((self.rows[number].answer for number in numbers), verifier)
        for number in numbers:
            if self.rows[number].answer in unusable:
                yield number, "unusable gold", "the verifier rejects the gold itself when it is written in a box"

    def _find_unusable_tasks(self, environments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
        """Tasks that their reward cannot judge, whatever the reply is."""
        for name in environments:
            numbers = [number for number in self.kept() if self.rows[number].environment == name]
            if is_judged(self.config, name):  # a judge compares replies, and there are none yet
                continue
            reward = load_reward(self.config.rewards_of(name).reward_funcs[0])
            tasks = [(self.rows[number].prompt, self.rows[number].columns or {}) for number in numbers]
            for place in gold_answers.find_unusable_tasks(tasks, reward):
                yield numbers[place], "unusable task", f"{reward_name(reward)} cannot judge it, whatever the reply is"

    def funnel(self) -> list[dict[str, Any]]:
        """For each reason, in the order of the steps: rows `dropped` and `left`, and three `examples`."""
        by_reason: dict[str, list[int]] = {}
        for number, (reason, _) in self.dropped.items():
            by_reason.setdefault(reason, []).append(number)
        left, table = len(self.rows), []
        for reason, numbers in by_reason.items():
            left -= len(numbers)
            examples = [self._example(number) for number in sorted(numbers)[:3]]
            table.append({"reason": reason, "dropped": len(numbers), "left": left, "examples": examples})
        return table

    def _example(self, number: int) -> dict[str, Any]:
        row, (_, detail) = self.rows[number], self.dropped[number]
        return {
            "from": self.label(number),
            "problem": row.problem[:200],
            "answer": row.answer[:200],
            "why": detail,
        }

    def dropped_rows(self) -> Iterator[dict[str, Any]]:
        """Every dropped row with its reason, in the order the rows were read."""
        for number in sorted(self.dropped):
            row, (reason, detail) = self.rows[number], self.dropped[number]
            yield {
                "source": row.source,
                "line": row.line,
                "reason": reason,
                "why": detail,
                "problem": row.problem,
                "answer": row.answer,
            }
