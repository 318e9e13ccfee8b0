"""Traces of solvers: every line that they write is true, the answer comes last, and what has no trace has a reason."""

import csv
import re
from decimal import Decimal

import pytest

from grpo_kit.data import puzzles
from grpo_kit.data.puzzles import bits, cipher, equations, numerals, physics, traces, working
from grpo_kit.rewards.challenge import challenge_reward

EVERY = list(puzzles.FAMILIES)
SUFFIX = "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"
SUM = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?(?: [-+*] \d+(?:\.\d+)?)+) = (-?\d+(?:\.\d+)?)(?![\w.])")


def count_letters(texts):
    return [len(text) for text in texts]


def check_sums(trace: str) -> int:
    """How many sums, differences and products the trace writes; all of them are true."""
    found = SUM.findall(trace)
    for left, right in found:
        first, *rest = left.split(" ")
        value = Decimal(first)
        for sign, number in zip(rest[::2], rest[1::2]):
            value = {"+": value + Decimal(number), "-": value - Decimal(number), "*": value * Decimal(number)}[sign]
        assert value == Decimal(right), (left, right)
    return len(found)


def solved(family: str, count: int, seed: int = 61, **knobs) -> list[puzzles.Puzzle]:
    return [puzzles.make_puzzle(family, seed, index, knobs) for index in range(count)]


# ---- every line is true


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gravity", "unit conversion"])
def test_a_measure_is_divided_multiplied_and_rounded_right(family):
    for puzzle in solved(family, 100):
        lines = puzzle.trace.split("\n")
        assert check_sums(puzzle.trace) == len(re.findall(r"\d = ", puzzle.trace)) - puzzle.trace.count("t^2 =") >= 8
        value, by = re.search(r"^([\d.]+) / ([\d.]+):$", puzzle.trace, re.MULTILINE).groups()
        factor = re.search(r"^factor ([\d.]+)$", puzzle.trace, re.MULTILINE)[1]
        assert abs(Decimal(value) / Decimal(by) - Decimal(factor)) <= Decimal("0.00005")
        assert puzzle.prompt.count(value.rstrip("0") if "." in value else value) >= 1
        for before, line in zip(lines, lines[1:]):
            if rounded := re.match(r"rounded ([\d.]+)(?:, shown ([\d.]+): (equal)$)?", line):
                assert abs(Decimal(before.rpartition(" ")[2]) - Decimal(rounded[1])) <= Decimal("0.005")
                assert rounded[2] in (rounded[1], None)
        assert lines[-1] == f"rounded {puzzle.answer}"
        shown = re.findall(r"^(?:check )?t = ([\d.]+):$|^(?:check )?([\d.]+) m:$", puzzle.trace, re.MULTILINE)
        assert {a or b for a, b in shown} == set(re.findall(r"(?:t = |^|: )([\d.]+)(?:s| m\b)", puzzle.prompt, re.M))


def test_a_numeral_is_the_letters_of_its_digits():
    for puzzle in solved("numeral system", 100, numbers=(1, 3999)):
        pairs = re.findall(
            r"^(\d+) = ([\d +]+): ([A-Z ]+) -> ([A-Z]+)(?:, shown ([A-Z]+): equal)?$", puzzle.trace, re.M
        )
        assert len(pairs) == puzzle.trace.count("\n")
        for number, parts, letters, joined, shown in pairs:
            assert sum(map(int, parts.split(" + "))) == int(number) and letters.replace(" ", "") == joined
            assert shown in (joined, "") and joined == numerals.to_roman(int(number))
        assert pairs[-1][3] == puzzle.answer and puzzle.trace.count("shown") == puzzle.prompt.count(" -> ")


def check_bits(prompt: str, trace: str) -> None:
    """Read the lines of a search for a bit rule without its code."""
    shown = re.findall("^([01]{8}) -> ([01]{8})$", prompt, re.MULTILINE)
    query = re.search(r"output for: ([01]{8})", prompt)[1]
    column = {f"{'io'[which]}{at}": "".join(pair[which][at] for pair in shown) for which in (0, 1) for at in range(8)}
    column["0"] = "0" * len(shown)
    assert re.findall(r"^([io]\d) ([01]+)$", trace, re.MULTILINE) == [(name, column[name]) for name in column][:-1]
    table, output, names = {}, None, []
    for line in trace.split("\n")[17:]:
        if always := re.fullmatch(r"(o\d) is always ([01]): any input bit decides it", line):
            assert set(column[always[1]]) == {always[2]}
        elif start := re.fullmatch(r"(o\d) by (?:one|two) input bits?:", line):
            output = start[1]
        elif re.fullmatch(r"((rot|left|right) \d ?)+:", line):
            table, output, names = {}, None, re.findall(r"(\w+) (\d)", line)
        elif groups := re.fullmatch(r"(o\d )?((?:i\d |0 )*(?:i\d|0)): ([01 ]+) (yes|no)", line):
            target = (groups[1] or output).strip()
            read = list(zip(*(column[name] for name in groups[2].split()), column[target]))
            assert groups[3] == " ".join("".join(group) for group in read[: groups[3].count(" ") + 1])
            if groups[1]:
                assert groups[2].split() == [where(*name, int(target[1])) for name in names]
            else:
                table = {}
            clash = False
            for *given, bit in read[: groups[3].count(" ") + 1]:
                assert not clash  # nothing is read past the first contradiction
                clash = table.setdefault("".join(given), bit) != bit
            assert clash == (groups[4] == "no")
            assert clash or groups[3].count(" ") + 1 == len(shown)
    assert f"{query}: " + " ".join(f"i{at}={bit}" for at, bit in enumerate(query)) in trace
    looked_up = re.findall(r"^(o\d): ([i\d ]+) = ([01]+), ([01])$", trace, re.MULTILINE)
    assert [o for o, *_ in looked_up] == [f"o{place}" for place in range(8)]
    for o, names_at, given, bit in looked_up:
        assert names_at.split() == [where(*name, int(o[1])) for name in names]
        assert given == "".join("0" if at == "0" else query[int(at[1])] for at in names_at.split())
        assert table[given] == bit
    assert "".join(bit for *_, bit in looked_up) == trace.rpartition("\n")[2]


def where(kind: str, steps: str, place: int) -> str:
    """The input bit at a place of a copy, by shifting labels."""
    labels, n = [f"i{at}" for at in range(8)], int(steps)
    moved = {"rot": labels[n:] + labels[:n], "left": labels[n:] + ["0"] * n, "right": ["0"] * n + labels[: 8 - n]}
    return moved[kind][place]


@pytest.mark.slow
def test_a_search_for_bits_reads_what_is_there_and_stops_at_a_contradiction():
    for puzzle in solved("bit manipulation", 40):
        check_bits(puzzle.prompt, puzzle.trace)


def test_letters_of_a_cipher_spell_its_words_and_every_word_is_in_a_line():
    falls = 0
    for puzzle in solved("text encryption", 40) + solved("text encryption", 60, hidden=(4, 12), examples=(1, 2)):
        falls += puzzle.trace.count(": no\n")
        learned, _, read = puzzle.trace.partition("\nkey: ")
        words = [
            pair for line in re.findall(r"^(.+) -> (.+)$", puzzle.prompt, re.M) for pair in zip(*map(str.split, line))
        ]
        assert re.findall(r"^([a-z]+) = ([a-z]+): ", learned, re.M) == words
        key = dict.fromkeys(puzzle.prompt.rpartition(": ")[2], "?") | dict(
            pair.split("=")
            for line in learned.split("\n")
            for pair in line.partition(": ")[2].split(" ")
            if "=" in pair
        )
        readings, fitting, secret = {}, [], ""
        for line in [*read.split("\n")[2:-1], ": -> "]:
            if spelled := re.fullmatch(r"([a-z]*): ((?:[a-z]=[a-z?] )*)-> ([a-z?]*)", line):
                if len(fitting) == 1:  # the word before is read
                    readings[secret], key = fitting[0], key | dict(zip(secret, fitting[0]))
                secret, fitting = spelled[1], []
                assert spelled[2].split() == [f"{letter}={key[letter]}" for letter in secret]
                assert spelled[3] == "".join(key[letter] for letter in secret)
                readings[secret] = spelled[3]
            elif clash := re.fullmatch(r"([a-z]+): (\w)=(\w), but (\w)=(\w): no", line):
                assert (clash[2] == clash[4]) != (clash[3] == clash[5]) and clash[1] in cipher.WORDS
                pairs = set(zip(secret, clash[1]))
                assert (clash[2], clash[3]) in pairs and (clash[4], clash[5]) in pairs | set(key.items())
            elif line == "several fit: later":
                assert len(fitting) > 1
            else:
                fits = re.fullmatch(r"([a-z]+): ((?:[a-z]=[a-z] ?)+): fits", line)
                new = key | dict(pair.split("=") for pair in fits[2].split())
                assert "".join(new[letter] for letter in secret) == fits[1] and fits[1] in cipher.WORDS
                fitting.append(fits[1])
        assert " ".join(readings[secret] for secret in puzzle.prompt.rpartition(": ")[2].split()) == puzzle.answer
        before, _, last = puzzle.trace.rpartition("\n")
        assert last == puzzle.answer and puzzle.answer not in before
    assert falls > 10


@pytest.mark.slow
def test_sums_of_an_equation_are_true_and_its_answer_is_written_last():
    for puzzle in solved("equation transformation", 100, symbols=(0, 0)):
        lines = puzzle.trace.split("\n")
        assert check_sums(puzzle.trace) >= 2 or "joined" in puzzle.trace
        assert lines[-1] == puzzle.answer and lines[-2].endswith(f" is written {puzzle.answer}")
        chosen = puzzle.trace.rpartition("\nso ")[2].partition("\n")[0]
        signs = re.findall(r"(?:^|, )(\S) is ", chosen)
        assert sorted(signs) == sorted({line[2] for line in puzzle.prompt.split("\n")[1:-1]})
        way = [line for line in lines if "written backwards:" in line or line == "read as it stands:"][-1]
        for left, right in re.findall(r"^(\S{5}) = (\S+)$", puzzle.prompt, re.M):
            assert f"{left} = {right}: " in puzzle.trace[puzzle.trace.rindex(way) :]


@pytest.mark.slow
def test_a_copying_sign_names_the_order_of_its_pairs():
    kept = [puzzle for puzzle in solved("equation transformation", 12, symbols=(1, 1)) if puzzle.trace]
    assert len(kept) > 2
    for puzzle in kept:
        for left, right, order in re.findall(r"^(\S{5}) = (\S{4}): .* (\w+) pair, \w+ pair$", puzzle.trace, re.M):
            assert right == (left[:2] + left[3:] if order == "left" else left[3:] + left[:2])


# ---- literally


def test_a_short_trace_reads_like_this():
    prompt = (
        f"{physics.UNIT_OPENING} For example:\n4.0 m becomes 6.80\n9.0 m becomes 15.30\nNow, convert the following "
    )
    assert puzzles.solve_prompt(prompt + "measurement: 7.0 m" + SUFFIX).trace.split("\n") == [
        "The factor is the same in every line; the largest measurement tells it best.",
        "9.0 m:",
        "15.3 / 9:",
        "9 * 1 = 9, 15.3 - 9 = 6.3",
        "9 * 0.7 = 6.3, 6.3 - 6.3 = 0",
        "1 + 0.7 = 1.7",
        "factor 1.7",
        "check 4.0 m:",
        "1.7 * 4 = 6.8",
        "rounded 6.80, shown 6.80: equal",
        "7.0 m:",
        "1.7 * 7 = 11.9",
        "rounded 11.90",
    ]


def test_a_word_with_unknown_letters_is_the_one_that_fits():
    prompt = f"{cipher.OPENING}\nxyz qaab -> the door\nNow, decrypt the following text: qznymz baaf"
    assert puzzles.solve_prompt(prompt).reason == "no rule"
    key = {"a": "o", "b": "d", "q": "t"}
    lines, text = cipher.read_text(key, "caaf")
    falls = ["caaf: c=? a=o a=o f=? -> ?oo?", "book: c=b f=k: fits", "door: c=d, but b=d: no"]
    assert lines == falls and text == "book"
    lines, text = cipher.read_text({"a": "o"}, "caaf")
    assert lines[1:] == ["book: c=b f=k: fits", "door: c=d f=r: fits", "several fit: later"] and text is None


@pytest.mark.parametrize(
    ("value", "by", "decimals", "lines"),
    [
        ("3", "8", 2, ["8 * 0.3 = 2.4, 3 - 2.4 = 0.6", "8 * 0.07 = 0.56, 0.6 - 0.56 = 0.04",
                       "8 * 0.005 = 0.04, 0.04 - 0.04 = 0", "0.3 + 0.07 + 0.005 = 0.375, rounded 0.38"]),
        ("12", "4", 4, ["4 * 3 = 12, 12 - 12 = 0", "3"]),
        ("0", "7", 4, ["0"]),
        ("1", "30000", 2, ["0"]),
    ],
)  # fmt: skip
def test_a_quotient_is_written_digit_by_digit(value, by, decimals, lines):
    assert working.write_quotient(Decimal(value), Decimal(by), decimals)[0] == lines


# ---- what has no trace


@pytest.mark.parametrize(
    ("prompt", "reason", "detail"),
    [
        (f"{bits.OPENING}\n00001111 -> 00001111\nNow, determine the output for: 10100110", "ambiguous", "agree"),
        (f"{physics.UNIT_OPENING}\n1.0 m becomes 0.10\nNow, convert the following measurement: 9.0 m", "ambiguous",
         "0.095 .0.86. and 0.105 .0.95. agree"),
        (f"{physics.GRAVITY_OPENING}\nFor t = 0.1s, distance = 0.05 m\nNow, determine the falling distance for "
         "t = 2.0s", "ambiguous", "The factors 4.5 .18.0. and 5.5 .22.0."),
        (f"{cipher.OPENING}\nabc -> the\nNow, decrypt the following text: dxxe qwrt", "no rule", "No sentence"),
        (f"{cipher.OPENING}\nabc -> the\nNow, decrypt the following text: xyzuv wqrst xyzjk", "no rule", "No sentence"),
        (f"{cipher.OPENING}\nNow, decrypt the following text: abcde fgbbghi jggk", "ambiguous",
         "The text can be 'alice follows book' or 'alice follows door'"),
        (f"{equations.OPENING}\n12+34 = 46\nNow, determine the result for: 11-22", "ambiguous", "can be .* or .*"),
        (f"{equations.OPENING}\n22/11 = 11\nNow, determine the result for: 11/33", "ambiguous",
         r"22 \(distance, .*\) or|or 22 \("),
        (f"{numerals.OPENING}\n11 -> IX\nNow, write the number 12 in the", "no rule",
         "IX is not the Roman numeral of 11"),
        (f"{numerals.OPENING}\n11 -> XI\nNow, write the number 0 in the", "no rule", "no number from 1 to 3999"),
        ("What is 2 + 2?", "no rule", "no family"),
    ],
)  # fmt: skip
def test_a_puzzle_without_a_trace_has_a_reason(prompt, reason, detail):
    solution = puzzles.solve_prompt(prompt)
    assert (solution.reason, solution.trace) == (reason, "") and re.search(detail, solution.detail), solution


def test_a_solver_reads_the_prompt_and_nothing_else():
    """A prompt whose examples say another rule than the generator's gets the trace of what it says."""
    puzzle = puzzles.make_puzzle("unit conversion", 1, 0, {"decimals": (0, 0), "factor_decimals": (0, 0)})
    doubled = re.sub(r"(?<=becomes )[\d.]+", lambda found: f"{2 * Decimal(found[0]):.2f}", puzzle.prompt)
    solution = puzzles.solve_prompt(doubled)
    assert Decimal(solution.answer) == 2 * Decimal(puzzle.answer) and solution.trace.endswith(solution.answer)


# ---- rows to learn from


def test_a_row_has_the_form_that_the_scorer_reads():
    rows, left_out = traces.solver_traces(puzzles.make_rows(24, seed=3), count_letters, suffix=SUFFIX)
    assert len(rows) + len(left_out) == 24 and {one["reason"] for one in left_out} <= {"no short search"}
    assert challenge_reward([row["completion"] for row in rows], answer=[row["answer"] for row in rows]) == [1.0] * len(
        rows
    )
    for row in rows:
        (turn,) = row["completion"]
        assert list(row) == ["prompt", "completion", "answer", "family", "id", "tokens"]
        assert (turn["role"], turn["content"]) == ("assistant", f"\\boxed{{{row['answer']}}}")
        assert row["prompt"][0]["content"].endswith(SUFFIX) and "boxed" not in turn["reasoning_content"]
        assert row["tokens"] == len(turn["reasoning_content"]) + len("\n</think>\n" + turn["content"]) + 1


def test_what_is_left_out_is_named_and_nothing_is_cut():
    good = puzzles.make_puzzle("numeral system", 1, 0)
    unit = puzzles.make_puzzle("unit conversion", 1, 0)
    near, far = (f"{Decimal(unit.answer) * Decimal(factor):.2f}" for factor in ("1.009", "1.02"))
    length = len(good.trace) + len("\n</think>\n\\boxed{}" + good.answer) + 1
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": good.prompt}]
    rows = [
        {"prompt": turns, "answer": good.answer},
        {"prompt": good.prompt, "answer": "XX" + good.answer},
        {"prompt": good.prompt, "answer": " "},
        {"prompt": "What is 2 + 2?", "answer": "4"},
        {"prompt": unit.prompt, "answer": near},
        {"prompt": unit.prompt, "answer": far},
        {"prompt": unit.prompt, "answer": "nan"},
        {"prompt": f"{numerals.OPENING}\n11 -> IX\nNow, write the number 12 in the", "answer": "XII"},
    ]
    kept, left_out = traces.solver_traces(rows, count_letters, limit=length)
    assert [(one["row"], one["reason"]) for one in left_out] == [
        (1, "other answer"), (2, "no answer"), (3, "not a puzzle"), (4, "too long"), (5, "other answer"),
        (6, "other answer"), (7, "no rule"),
    ]  # fmt: skip
    assert [row["prompt"] for row in kept] == [turns] and kept[0]["completion"][0]["reasoning_content"] == good.trace
    assert f"ends in {good.answer}, and the row's answer is XX" in left_out[0]["detail"]
    assert re.search(rf"has \d+ tokens, and {length} fit", left_out[3]["detail"])
    assert traces.solver_traces(rows[:1], count_letters, limit=length - 1)[0] == []
    assert traces.solver_traces([], count_letters) == ([], [])


def test_the_embedded_policys_sums_are_worked_out_too():
    questions = {"What is 47 + 38?": "85", "What is 52 - 38?": "14", "What is 38 - 52?": "-14", "What is 7 + 8?": "15"}
    rows = [{"prompt": question, "answer": answer} for question, answer in questions.items()]
    kept, left_out = traces.solver_traces([*rows, {"prompt": "What is 47 + 38?", "answer": "86"}], count_letters)
    assert [(row["family"], row["completion"][0]["reasoning_content"]) for row in kept] == [
        ("sums", "7+8=15 4+3+1=8"), ("sums", "12-8=4 5-3-1=1")
    ]  # fmt: skip
    assert [(one["row"], one["reason"]) for one in left_out] == [
        (2, "not a puzzle"), (3, "not a puzzle"), (4, "other answer")
    ]  # fmt: skip
    assert [(entry["family"], entry["rows"]) for entry in traces.summarise_traces(kept, left_out)] == [
        ("sums", 2), (None, 0)
    ]  # fmt: skip


@pytest.mark.parametrize("prompt", [None, 7, [], [{"role": "user"}], ["x"], [{"role": "user", "content": 3}]])
def test_a_row_without_a_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="Row 0 has the prompt"):
        traces.solver_traces([{"prompt": prompt, "answer": "1"}], count_letters)
    with pytest.raises(ValueError, match="limit is 0 tokens"):
        traces.solver_traces([], count_letters, limit=0)


def test_a_summary_counts_lengths_and_reasons_by_family():
    rows = [{"family": "gravity", "tokens": tokens} for tokens in (10, 40, 20, 30)]
    reasons = [("gravity", "too long"), (None, "not a puzzle"), ("gravity", "ambiguous"), ("gravity", "too long")]
    left_out = [{"family": family, "reason": reason} for family, reason in reasons]
    summary = traces.summarise_traces(rows, left_out, [20, 5])
    assert summary == [
        {"family": "gravity", "rows": 4, "left_out": {"too long": 2, "ambiguous": 1}, "median": 20, "ninetieth": 40,
         "longest": 40, "within": {20: 0.5, 5: 0.0}},
        {"family": None, "rows": 0, "left_out": {"not a puzzle": 1}},
    ]  # fmt: skip
    assert traces.format_traces(summary) == [
        "gravity: 4 traces of 20 tokens (90th of 100: 40, longest 40), 50.0% within 20, 0.0% within 5; left out: "
        "2 too long, 1 ambiguous",
        "other prompts: 0 traces; left out: 1 not a puzzle",
    ]


# ---- the challenge's own puzzles


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "answered", "explained"),  # shares
    [
        ("bit manipulation", 0.97, 0.97),
        ("gravity", 1.0, 1.0),
        ("unit conversion", 1.0, 1.0),
        ("text encryption", 1.0, 1.0),
        ("numeral system", 1.0, 1.0),
        ("equation transformation", 0.70, 0.30),  # many leave the answer open, or hide digits behind symbols
    ],
)
def test_a_solver_answers_and_explains_the_real_puzzles(shared_data, family, answered, explained):
    with (shared_data / "nemotron_challenge" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if puzzles.classify_prompt(row["prompt"]) == family][::10]
    solutions = [puzzles.solve_prompt(row["prompt"]) for row in rows]
    replies = [f"{solution.trace}\n</think>\n\\boxed{{{solution.answer}}}" for solution in solutions]
    right = challenge_reward(replies, answer=[row["answer"] for row in rows])
    assert sum(right) >= answered * len(rows)
    traced = [(row, solution) for row, solution, paid in zip(rows, solutions, right) if solution.trace and paid]
    assert len(traced) >= explained * len(rows)
    assert len(traced) >= 0.98 * sum(solution.trace != "" for solution in solutions)
    for row, solution in traced[:20]:
        check_sums(solution.trace)
        if family == "bit manipulation":
            check_bits(row["prompt"], solution.trace)
