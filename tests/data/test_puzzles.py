"""Six puzzle families: like the challenge's, fixed by seed and index, solved from their examples, or marked."""

import csv
import hashlib
import itertools
import json
import random
import re
from decimal import Decimal

import pytest

from grpo_kit.data import puzzles
from grpo_kit.data.puzzles import bit_rules, bits, cipher, cryptarithms, equations, numerals, physics, rules
from grpo_kit.rewards.challenge import challenge_reward, challenge_score

COUNTS = {
    "bit manipulation": 1602, "gravity": 1597, "unit conversion": 1594, "text encryption": 1576, "numeral system": 1576,
    "equation transformation": 1555,
}  # fmt: skip
EVERY = list(puzzles.FAMILIES)
SUFFIX = "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`"


@pytest.fixture(scope="module")
def real(shared_data) -> dict[str, list[dict[str, str]]]:
    """The challenge's rows by family, recognised by a word of the prompt and not by `classify_prompt`."""
    words = dict(
        zip(
            COUNTS,
            ["bit manipulation", "gravitational", "unit conversion", "encryption", "numeral system", "equations"],
        )
    )
    rows = {family: [] for family in COUNTS}
    with (shared_data / "nemotron_challenge" / "train.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            (family,) = (name for name, word in words.items() if word in row["prompt"])
            rows[family].append(row)
    return rows


def paid(answer: str, reply: str | None) -> bool:
    return reply is not None and challenge_score(answer, f"\\boxed{{{reply}}}") == 1.0


# ---- the challenge's own puzzles


def test_every_real_prompt_is_assigned_to_a_family(real):
    for family, rows in real.items():
        assert len(rows) == COUNTS[family]
        assert {puzzles.classify_prompt(row["prompt"]) for row in rows} == {family}
        assert {puzzles.classify_prompt(row["prompt"] + SUFFIX) for row in rows[:50]} == {family}


@pytest.mark.parametrize(
    "name", ["gsm8k/train.jsonl", "gsm8k/test.jsonl", "math/train.jsonl", "math/math500_test.jsonl"]
)
def test_other_prompts_belong_to_no_family(shared_data, name):
    for line in (shared_data / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = row.get("question") or row["problem"]
        assert puzzles.classify_prompt(prompt) is puzzles.solve_prompt(prompt).answer is None


@pytest.mark.slow
def test_a_real_equation_whose_answer_is_determined_is_answered_right(real):
    checked = 0
    for row in real["equation transformation"][::10]:
        shown = re.findall(r"^(\S{5}) = (\S+)$", row["prompt"], re.MULTILINE)
        answers = equations.weigh_answers(shown, row["prompt"].rpartition(" ")[2])
        assert answers, row["id"]  # the rules explain every puzzle
        if len(answers) == 1 and None not in answers:
            assert set(answers) == {row["answer"]}
            checked += 1
    assert checked > 60


def skeleton(prompt: str) -> str:
    """A prompt with one example line, what differs between puzzles masked."""
    prompt = re.sub(r"(?<=text: )[a-z ]+$|(?<=for: )\S{5}$", "Q", prompt)
    prompt = re.sub(r"^[a-z ]+ -> [a-z ]+$|^\S{5} = \S+$", "E", prompt, flags=re.MULTILINE)
    prompt = re.sub(r"^N -> [IVXLC]+$", "N -> R", re.sub(r"\d+(\.\d+)?", "N", prompt), flags=re.MULTILINE)
    return "\n".join(line for line, _ in itertools.groupby(prompt.split("\n")))


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_prompts_have_the_shape_of_the_real_ones(real, family):
    def examples(prompt):
        return len(re.findall(r"^(?:For t|.* (?:->|=|becomes)) \S.*$", prompt, re.MULTILINE))

    prompts = [puzzles.make_puzzle(family, 11, index).prompt for index in range(60)]
    assert {skeleton(prompt) for prompt in prompts} == {skeleton(row["prompt"]) for row in real[family]}
    assert {examples(prompt) for prompt in prompts} <= {examples(row["prompt"]) for row in real[family]}
    lengths = [len(row["prompt"]) for row in real[family]]
    assert min(lengths) - 10 <= min(map(len, prompts)) and max(map(len, prompts)) <= max(lengths) + 10


# ---- generated puzzles

FORMATS = {
    "bit manipulation": "[01]{8}",
    "gravity": r"\d+\.\d{1,2}",
    "unit conversion": r"\d+\.\d{2}",
    "text encryption": "[a-z]+( [a-z]+){2,4}",
    "numeral system": "[IVXLC]+",
    "equation transformation": r"\S{1,5}",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_a_generated_puzzle_is_determined_solved_and_paid(family):
    for index in range(120):
        puzzle = puzzles.make_puzzle(family, 21, index)
        assert puzzle.determined and puzzle.family == puzzles.classify_prompt(puzzle.prompt) == family
        assert re.fullmatch(FORMATS[family], puzzle.answer), puzzle
        searched = family == "equation transformation" and not puzzle.answer[0].isdigit()  # digits behind symbols
        assert puzzle.trace.endswith(puzzle.answer) and "boxed" not in puzzle.trace or searched and not puzzle.trace
        completion = f"{puzzle.trace}\n</think>\n\\boxed{{{puzzle.answer}}}"
        assert challenge_reward([completion], answer=[puzzle.answer]) == [1.0]
        assert puzzles.solve_prompt(puzzle.prompt + SUFFIX) == puzzles.solve_prompt(puzzle.prompt), puzzle
        assert puzzles.solve_prompt(puzzle.prompt).answer == puzzle.answer, puzzle


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_the_same_seed_and_index_give_the_same_puzzle_in_any_order(family):
    forwards = [puzzles.make_puzzle(family, 3, index) for index in range(12)]
    random.seed(99)
    back = [puzzles.make_puzzle(family, 3, index) for index in reversed(range(12))]
    assert forwards == back[::-1]
    assert len({puzzle.prompt for puzzle in forwards}) == 12
    assert puzzles.make_puzzle(family, 4, 0) != forwards[0]


@pytest.mark.slow
def test_puzzles_change_only_with_the_version():
    text = "".join(puzzles.make_puzzle(family, 0, index).prompt for family in EVERY for index in range(3))
    assert (puzzles.VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == (2, "717827b0fd2265f9")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bit manipulation", "equation transformation"])
def test_an_answer_that_the_examples_leave_open_is_marked(family):
    kept = [puzzles.make_puzzle(family, 5, index, determined_only=False) for index in range(60)]
    marks = {puzzle.determined for puzzle in kept}
    assert marks == {True, False}
    for puzzle in kept:
        assert puzzle.determined or not puzzle.trace
        assert not puzzle.determined or puzzles.solve_prompt(puzzle.prompt).answer == puzzle.answer


def test_an_operator_that_no_example_shows_is_never_called_determined():
    unshown = 0
    for index in range(80):
        puzzle = puzzles.make_puzzle("equation transformation", 6, index, {"symbols": (0, 0)}, determined_only=False)
        *lines, query = puzzle.prompt.split("\n")[1:]
        if all(line[2] != query.rpartition(" ")[2][2] for line in lines):
            assert not puzzle.determined and puzzles.solve_prompt(puzzle.prompt).reason == "ambiguous"
            unshown += 1
    assert unshown > 5


@pytest.mark.slow
def test_determined_bits_agree_with_a_search_that_shares_no_code():
    names = [(kind, n) for kind, ns in (("o", range(8)), ("l", range(1, 8)), ("r", range(1, 8))) for n in ns]

    def bit(byte: str, place: int, kind: str, n: int) -> str:
        padded = {"o": byte * 2, "l": byte + "0" * 8, "r": "0" * n + byte}[kind]
        return padded[place + (0 if kind == "r" else n)]

    for index in range(4):
        puzzle = puzzles.make_puzzle("bit manipulation", 31, index, {"copies": (2, 2)}, determined_only=False)
        shown = re.findall("^([01]{8}) -> ([01]{8})$", puzzle.prompt, re.MULTILINE)
        query = puzzle.prompt[-8:]
        outputs = set()
        for copies in itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(4)):
            table, works = {}, True
            for given, output in shown:
                for place in range(8):
                    row = tuple(bit(given, place, *name) for name in copies)
                    works = works and table.setdefault(row, output[place]) == output[place]
                if not works:
                    break
            if works:
                outputs.add("".join(table.get(tuple(bit(query, p, *name) for name in copies), "?") for p in range(8)))
        assert puzzle.determined == (outputs == {puzzle.answer})
        assert puzzle.answer in outputs


@pytest.mark.slow
def test_symbol_equations_agree_with_trying_every_filling():
    shown, query_sums = [("ab+ca", "dc")], "ba+ac"  # 5,040 fillings, three ways, twelve rules
    expected = {}
    for way in range(3):
        for filling in itertools.permutations("0123456789", 4):
            digit = dict(zip("abcd", filling))
            lines = [
                ("".join(digit.get(c, c) for c in left), "".join(digit[c] for c in right)) for left, right in shown
            ]
            query = "".join(digit.get(c, c) for c in query_sums)
            if not all(rules.is_possible(left, way) for left, _ in [*lines, (query, "")]):
                continue
            back = {number: symbol for symbol, number in digit.items()}
            for rule in rules.RULES:
                if all(rules.write_result(rule, way, left) == right for left, right in lines):
                    answer = "".join(back.get(c, c if c == "+" else "?") for c in rules.write_result(rule, way, query))
                    answer = None if "?" in answer else answer
                    share = rules.weigh_rules({"+": rule}, way, True) / 5_040
                    expected[answer] = expected.get(answer, 0) + share
    answers = cryptarithms.weigh_answers(shown, query_sums)
    assert len(expected) > 2
    assert answers == pytest.approx(expected)


# ---- difficulty


def test_generator_settings_change_what_they_name():
    for index in range(20):
        puzzle = puzzles.make_puzzle("numeral system", 1, index, {"numbers": (1000, 3999), "examples": (2, 2)})
        assert "M" in puzzle.answer and puzzle.prompt.count(" -> ") == 2
        puzzle = puzzles.make_puzzle("text encryption", 1, index, {"hidden": (0, 0)})
        assert set(puzzle.prompt.rpartition(": ")[2]) <= set(puzzle.prompt.partition("Now,")[0])
        assert "?" not in puzzle.trace and puzzle.trace
        puzzle = puzzles.make_puzzle("gravity", 1, index, {"g": (1.6, 1.7), "seconds": (10.0, 20.0)})
        assert 1.5 < 2 * float(puzzle.answer) / float(re.search(r"for t = ([\d.]+)s", puzzle.prompt)[1]) ** 2 < 1.8
        puzzle = puzzles.make_puzzle("unit conversion", 1, index, {"factor": (3.0, 3.0)})
        assert re.search(r"^factor (3|3\.00\d+|2\.99\d+)$", puzzle.trace, re.MULTILINE)
        puzzle = puzzles.make_puzzle("bit manipulation", 1, index, {"copies": (1, 1)})
        assert re.search(r"^(rot|left|right) \d: 0=[01] 1=[01]$", puzzle.trace, re.MULTILINE)
        puzzle = puzzles.make_puzzle("equation transformation", 1, index, {"symbols": (0, 0), "operators": (1, 1)})
        assert puzzle.prompt[-1].isdigit() and len({line[2] for line in puzzle.prompt.split("\n")[1:-1]}) == 1
        assert puzzle.difficulty == {"examples": (3, 5), "operators": (1, 1), "symbols": (0, 0)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "knobs", "message"),
    [
        ("chess", {}, "'chess' is not a puzzle family.*bit manipulation"),
        ("gravity", {"example": (3, 5)}, "'example' is not a knob of gravity; it has examples, seconds, g"),
        ("gravity", {"seconds": (5.0, 1.0)}, r"seconds is \(5.0, 1.0\)"),
        ("gravity", {"examples": (0, 3)}, r"examples is \(0, 3\).*1 or more"),
        ("gravity", {"examples": (1.5, 3)}, "whole numbers"),
        ("gravity", {"g": (0, 1)}, "above 0"),
        ("gravity", {"seconds": (1.0, 1.02)}, "further apart"),
        ("unit conversion", {"factor": (1,)}, r"factor is \(1,\)"),
        ("numeral system", {"numbers": (0, 10)}, "1 to 3999"),
        ("numeral system", {"numbers": (1, 4000)}, "1 to 3999"),
        ("bit manipulation", {"copies": (1, 4)}, r"copies is \(1, 4\)"),
        ("bit manipulation", {"examples": (7, 300)}, "256 bytes"),
        ("bit manipulation", {"examples": (1, 1)}, "1000 draws.*more examples"),
        ("text encryption", {"hidden": (20, 26)}, "20 to 26 letters that its 3 to 5 examples"),
        ("equation transformation", {"operators": (4, 5)}, "1 to 3 operators"),
        ("equation transformation", {"symbols": (0, 2)}, "0 .digits. or 1"),
    ],
)
def test_a_wrong_generator_setting_is_named(family, knobs, message):
    with pytest.raises(ValueError, match=message):
        puzzles.make_puzzle(family, 0, 0, knobs)


# ---- rows


@pytest.mark.slow
def test_families_alternate_and_fewer_rows_are_a_prefix_of_more():
    rows = puzzles.make_rows(30, seed=2)
    assert [row["family"] for row in rows] == EVERY * 5
    assert all(list(row) == ["id", "prompt", "answer", "family", "trace"] for row in rows)
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 30
    assert puzzles.make_rows(12, seed=2) == rows[:12] and puzzles.make_rows(12, seed=3) != rows[:12]
    only = puzzles.make_rows(4, seed=2, families=["gravity"], difficulty={"gravity": {"examples": (9, 9)}})
    assert {(row["family"], row["prompt"].count("For t")) for row in only} == {("gravity", 9)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "0 rows of 6 families"),
        ({"count": 3, "families": []}, "3 rows of 0 families"),
        ({"count": 3, "families": ["sums"]}, "'sums' is not a puzzle family"),
        (
            {"count": 99, "families": ["numeral system"], "difficulty": {"numeral system": {"numbers": (1, 2)}}},
            "only 2 different puzzles of 99",
        ),
    ],
)
def test_impossible_requests_for_rows_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        puzzles.make_rows(seed=1, **arguments)


# ---- the families' own rules, literally


@pytest.mark.parametrize(
    ("rule", "way", "left", "right"),
    [
        ("add", 0, "49`94", "143"),
        ("add", 1, "86+66", "431"),  # 68 + 66 = 134
        ("subtract", 2, "69/52", "17/"),  # 25 - 96 = -71, the line backwards
        ("subtract", 1, "14-19", "-05"),  # 41 - 91 = -50, the minus stays in front
        ("subtract", 0, "33|45", "|12"),
        ("distance below zero", 0, "70+22", "+48"),
        ("remainder of larger by smaller", 1, "02}63", "61"),  # 36 % 20 = 16
        ("multiply, minus 1", 1, "91*88", "1761"),  # 19 * 88 - 1 = 1671
        ("join", 0, "20#24", "2024"),
        ("join", 1, "83*15", "1583"),
        ("join", 2, "83*15", "8315"),
        ("join swapped", 0, "83*15", "1583"),
    ],
)
def test_a_rule_writes_its_result_in_the_given_format(rule, way, left, right):
    assert rules.write_result(rule, way, left) == right


def test_two_signs_of_a_puzzle_have_rules_of_two_groups_unless_both_concatenate():
    def given(shown, way):
        return list(
            rules.assign_rules(shown, way, lambda rule, way, *pair: rules.write_result(rule, way, pair[0]) == pair[1])
        )

    assert given([("12#34", "46"), ("12$34", "47")], 0) == []  # two sums
    assert given([("12#34", "46"), ("12$34", "408")], 0) == [{"#": "add", "$": "multiply"}]
    assert given([("12#34", "1234"), ("12$34", "1234")], 0) == [{"#": "join", "$": "join"}]


def test_copied_bits_equal_their_sources():
    for name in bit_rules.COPIES:
        for byte in (0b10110010, 0b00000001, 0b11111111):
            sources = [bit_rules.find_source(place, *name) for place in range(8)]
            text = "".join("0" if at is None else f"{byte:08b}"[at] for at in sources)
            assert f"{bit_rules.shift_byte(byte, *name):08b}" == text, name


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (0, "0011"),
        (("not", 1), "1010"),
        (("xor", 0, 1), "0110"),
        (("and", ("not", 0), 1), "0100"),
        (("majority", 0, 1, 2), "0011"),
        (("choice", 2, 0, 1), "0111"),  # the first word where the third has 1, else the second
    ],
)
def test_bit_rules_are_evaluated_on_whole_words(rule, value):
    assert f"{bits.evaluate_rule(rule, [0b0011, 0b0101, 0b0010], 0b1111):04b}" == value


def test_the_examples_bound_the_possible_factors():
    shown = [(Decimal(10), Decimal("12.35")), (Decimal(20), Decimal("24.70"))]
    low, high = physics.allowed_factors(shown)
    assert (low, high) == (Decimal("1.23475"), Decimal("1.23525"))
    assert physics.is_determined(shown)
    assert not physics.is_determined([(Decimal(1), Decimal("0.10"))])  # 0.095 to 0.105
    assert not physics.is_determined([(Decimal(1), Decimal("1.00")), (Decimal(1), Decimal("2.00"))])  # nothing fits
    lines = "10.0 m becomes 12.35\n20.0 m becomes 24.70\n"
    prompt = f"{physics.UNIT_OPENING}\n{lines}Now, convert the following measurement: 40.0 m"
    assert puzzles.solve_prompt(prompt).answer == "49.40"
    assert physics.round_half_up(Decimal("0.125")) == Decimal("0.13")


@pytest.mark.parametrize(
    ("number", "letters"),
    [(1, "I"), (4, "IV"), (49, "XLIX"), (100, "C"), (1994, "MCMXCIV"), (3999, "MMMCMXCIX")],
)
def test_roman_numerals(number, letters):
    assert numerals.to_roman(number) == letters
    assert sum(value for value, _ in numerals.split_number(number)) == number


def test_an_unseen_letter_is_inferred_from_the_words_that_fit():
    key, lines = cipher.learn_key([("abc", "cat")])
    assert key == {"a": "c", "b": "a", "c": "t"} and lines == ["abc = cat: a=c b=a c=t"]
    assert cipher.learn_key([("abc", "cat"), ("abd", "tat")]) is None  # a is both c and t
    assert cipher.learn_key([("abc", "cat"), ("xbc", "cat")]) is None  # both a and x are c
    texts = {cipher.decrypt(new, "abc dxxe cef") for new in cipher.find_readings(key, "abc dxxe cef")}
    assert texts == set()  # "sees" has its ends alike
    assert len(cipher.WORDS) == 77


# ---- prompts that are not puzzles


@pytest.mark.parametrize("family", EVERY)
def test_a_damaged_prompt_never_raises(family):
    rng = random.Random(1)
    prompt = puzzles.make_puzzle(family, 8, 0).prompt
    damaged = [prompt[:cut] for cut in range(0, len(prompt), 7)]
    for _ in range(40):
        at = rng.randrange(90, len(prompt))
        damaged.append(
            prompt[:at] + rng.choice(["\n", "0", "²", "٣", "=", "->", "9" * 40, "\0", " "]) + prompt[at + 1 :]
        )
    damaged += [
        prompt.replace("\n", "\r\n"),
        prompt + prompt,
        prompt.replace("1", "x"),
        prompt.upper(),
        puzzles.FAMILIES[family].opening,
    ]
    for prompt in damaged:
        solution = puzzles.solve_prompt(prompt)
        assert bool(solution.reason) != bool(solution.trace) and (
            solution.answer or solution.reason != "no short search"
        )


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Now, determine the output for: 10100110",
        f"{numerals.OPENING}\n11 -> IX\nNow, write the number 12 in the Wonderland numeral system.",  # not Roman
        f"{bits.OPENING}\nNow, determine the output for: 10100110",  # no example
        f"{bits.OPENING}\n00000000 -> 00000000\n00000000 -> 11111111\nNow, determine the output for: 10100110",
        f"{cipher.OPENING}\nabc -> the cat\nNow, decrypt the following text: abc",
        f"{equations.OPENING}\n11+11 = 99\nNow, determine the result for: 22+22",
        f"{equations.OPENING}\nab+cd = abcdef\nNow, determine the result for: ab+cd",
        f"{equations.OPENING}\nab+cd = abc\nNow, determine the result for: 12+34",
        f"{physics.UNIT_OPENING}\n1.0 m becomes 1.00\n1.0 m becomes 2.00\n"
        "Now, convert the following measurement: 3.0 m",
    ],
)
def test_examples_that_no_rule_explains_give_no_answer(prompt):
    solution = puzzles.solve_prompt(prompt)
    assert solution.answer is None and solution.reason == "no rule" and solution.detail and not solution.trace


@pytest.mark.slow
def test_many_different_signs_do_not_make_solving_slow():
    lines = "".join(f"a{i}{sign}b{i} = {i}\n" for i, sign in zip("cdefghij", "!#$%&?@^"))
    assert puzzles.solve_prompt(f"{equations.OPENING}\n{lines}Now, determine the result for: ac!bd").answer is None
    lines = "".join(f"ab{chr(0x4E00 + i)}cd = abcd\n" for i in range(3000))
    assert puzzles.solve_prompt(f"{equations.OPENING}\n{lines}Now, determine the result for: ac!bd").answer is None
