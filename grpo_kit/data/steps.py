"""A row's way from its source to the splits, step by step: read, cleaned, kept out, deduplicated, or gone with a reason.

Each step looks at the rows that are left, and each step that takes long keeps its results in a file, so that what a killed
preparation had finished is not done again.
"""

import contextlib
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import Data, RunConfig
from grpo_kit.data import cleaning, gold_answers, sources
from grpo_kit.policy.chat import build_messages, make_token_counter
from grpo_kit.runs.files import read_lines, write_lines

BATCH = 1000  # prompts whose tokens are counted at a time
Why = tuple[str, str]  # reason, and what the row was like
Show = Callable[[int, int, str], None]


class Row(NamedTuple):
    """A row on its way: the source's name, the line there, problem and gold."""

    source: str
    line: int
    problem: str
    answer: str

    @property
    def id(self) -> str:
        """What the row is called for good: a hash of its normalised problem."""
        return hashlib.sha256(cleaning.normalise_text(self.problem).encode()).hexdigest()[:16]


class Pipeline:
    """The rows of all sources, and for each that is gone the reason; every step asks `finished` first.

    `rows` are numbered in the order they were read. Steps look only at the rows that are left.
    """

    STEPS = ("reading", "cleaning", "tokens", "golds", "leaks", "duplicates", "writing")

    def __init__(self, config: RunConfig, finished: "Finished", show: Show) -> None:
        self.config, self.finished, self._show = config, finished, show
        self.rows: list[Row] = []
        self.gone: dict[int, Why] = {}
        self.counts: dict[str, dict[str, Any]] = {}  # of each source: rows and a sha256 of what was read

    def show(self, step: str) -> None:
        """Say which step is at work."""
        self._show(self.STEPS.index(step), len(self.STEPS), step)

    def left(self) -> list[int]:
        """Numbers of the rows that no step has dropped."""
        return [number for number in range(len(self.rows)) if number not in self.gone]

    def ids(self) -> dict[int, str]:
        """Number to id, of the rows that are left."""
        return {number: self.rows[number].id for number in self.left()}

    def label(self, number: int) -> str:
        """Where a row came from, for people."""
        return f"{self.rows[number].source}, line {self.rows[number].line}"

    def read(self, found: Sequence[sources.Source]) -> None:
        """Take every source's rows; rows that a recipe drops are gone at once."""
        self.show("reading")
        for position, source in enumerate(found):
            taken = sources.read_source(source, self.config.data, self.config.run.seed)
            digest, begin = hashlib.sha256(), len(self.rows)
            for line, problem, answer, reason, why in self.finished.step(f"read-{position}", taken):
                digest.update(f"{problem}\0{answer}\0".encode())
                if reason:
                    self.gone[len(self.rows)] = (reason, why)
                self.rows.append(Row(source.name, line, problem, answer))
            self.counts[source.name] = {"rows": len(self.rows) - begin, "rows_sha256": digest.hexdigest()}

    def clean(self, verifier: gold_answers.Reward | None) -> None:
        """Drop what is unfit by its text, prompts that are too long, and golds the verifier cannot use."""
        self.show("cleaning")
        unfit = {number: cleaning.find_unfit_reason(*self.rows[number][2:]) for number in self.left()}
        for step in cleaning.FILTERS:
            self.gone |= {number: (step.reason, step.why) for number, reason in unfit.items() if reason == step.reason}
        if limit := self.config.data.max_prompt_tokens:
            self.show("tokens")
            self._drop("tokens", lambda: self._too_long(limit))
        if verifier is not None:
            self.show("golds")
            self._drop("golds", lambda: self._unusable(verifier))
        if not self.left():
            why = ", ".join(
                f"{count} with {reason}" for reason, count in Counter(w[0] for w in self.gone.values()).items()
            )
            raise ValueError(
                f"{self.config.data.source} has no usable row ({why}). If other columns hold problem and gold, name them with data.columns.prompt and data.columns.answer."
            )

    def keep_out(self, held: Sequence[sources.Source]) -> dict[str, Any]:
        """Drop problems that stand in an evaluation set, or give one away; returns what was hit, set by set."""
        from grpo_kit.data import leaks

        self.show("leaks")
        if not held:
            return {}
        numbers, data = self.left(), Data(paths=self.config.data.paths)

        def find() -> Iterator[Any]:
            texts = {
                s.name: [taken.problem for taken in sources.read_source(s, data, self.config.run.seed)] for s in held
            }
            found = leaks.find_leaks([self.rows[number].problem for number in numbers], texts)
            yield found.report
            yield from ((numbers[at], *why) for at, why in found.dropped.items())

        report, *dropped = self.finished.step("leaks", find())
        self.gone |= {number: (reason, why) for number, reason, why in dropped}
        return report

    def deduplicate(self, verifier: gold_answers.Reward | None) -> dict[int, int]:
        """Drop repetitions; returns which of the rows left are tied to which."""
        from grpo_kit.data import duplicates

        self.show("duplicates")
        numbers = self.left()

        def find() -> Iterator[Any]:
            found = duplicates.find_duplicates(
                [self.rows[number].problem for number in numbers],
                [self.rows[number].answer for number in numbers],
                gold_answers.make_gold_comparison(verifier),
                lambda at: self.label(numbers[at]),
            )
            yield {str(numbers[at]): numbers[tied] for at, tied in found.ties.items()}
            yield from ((numbers[at], *why) for at, why in found.dropped.items())

        ties, *dropped = self.finished.step("duplicates", find())
        self.gone |= {number: (reason, why) for number, reason, why in dropped}
        return {int(number): tied for number, tied in ties.items()}

    def _drop(self, step: str, find: Callable[[], Iterator[tuple[int, str, str]]]) -> None:
        self.gone |= {number: (reason, why) for number, reason, why in self.finished.step(step, find())}

    def _too_long(self, limit: int) -> Iterator[tuple[int, str, str]]:
        count = make_token_counter(self.config.policy)
        numbers, data = self.left(), self.config.data
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            asked = [build_messages(self.rows[n].problem, data.prompt_suffix, data.system_prompt) for n in part]
            for number, length in zip(part, count(asked), strict=True):
                if length > limit:
                    yield number, "long prompt", f"{length} tokens"

    def _unusable(self, verifier: gold_answers.Reward) -> Iterator[tuple[int, str, str]]:
        numbers = self.left()
        bad = gold_answers.find_unusable_golds((self.rows[number].answer for number in numbers), verifier)
        for number in numbers:
            if self.rows[number].answer in bad:
                yield number, "unusable gold", "the verifier refuses the gold in its own box"

    def funnel(self) -> list[dict[str, Any]]:
        """What each reason took, in the order of the steps: rows dropped and left, and three examples."""
        by_reason: dict[str, list[int]] = {}
        for number, (reason, _) in self.gone.items():
            by_reason.setdefault(reason, []).append(number)
        left, table = len(self.rows), []
        for reason, numbers in by_reason.items():
            left -= len(numbers)
            examples = [self._example(number) for number in sorted(numbers)[:3]]
            table.append({"reason": reason, "dropped": len(numbers), "left": left, "examples": examples})
        return table

    def _example(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        return {
            "from": self.label(number),
            "problem": row.problem[:200],
            "answer": row.answer[:200],
            "why": self.gone[number][1],
        }

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Every row that is gone, whole, with its reason, in the order it was read."""
        for number in sorted(self.gone):
            row, (reason, why) = self.rows[number], self.gone[number]
            yield {
                "source": row.source,
                "line": row.line,
                "reason": reason,
                "why": why,
                "problem": row.problem,
                "answer": row.answer,
            }


class Finished:
    """What earlier tries with the same settings and inputs have finished: a JSON Lines file a step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def step(self, name: str, make: Iterable[Any]) -> list[Any]:
        """The step's results from its file, else made and kept there; results are what JSON can hold."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file():
            results = list(make)
            write_lines(path, results)
            return results
        return read_lines(path)


@contextlib.contextmanager
def kept_for_later(folder: Path, key: dict[str, Any]) -> Iterator[Finished]:
    """The finished steps for exactly these settings and inputs; gone when the block ends well or the input is at fault."""
    try:
        yield Finished(folder / digest_of(key)[:16])
    except ValueError:
        _remove(folder)
        raise
    _remove(folder)


def _remove(folder: Path) -> None:
    """The folder, and those above it that it leaves empty (a run that came to nothing leaves no trace)."""
    shutil.rmtree(folder, ignore_errors=True)
    for above in list(folder.parents)[:2]:
        with contextlib.suppress(OSError):
            above.rmdir()


def digest_of(value: Any) -> str:
    """sha256 of anything JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
