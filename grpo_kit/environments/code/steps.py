"""The steps that generated programs are made of: what the task says, and the function that does it.

Each function stands alone, so that its source can be part of a right reply. It takes the values and a number `k`, which
some do not use, and changes nothing in place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One step: a sentence with `{k}` where the number belongs, the function, and from where to where k is drawn."""

    sentence: str
    function: Callable[[Any, int], Any]
    draws: tuple[int, int] = (0, 0)


class Shape(NamedTuple):
    """A kind of input: its name as an argument, what it is, how standard input holds it, its steps and its ends."""

    argument: str
    what: str
    lines: str
    steps: tuple[Step, ...]
    ends: tuple[Step, ...]


def keep_multiples(values, k):
    return [value for value in values if value % k == 0]


def keep_above(values, k):
    return [value for value in values if value > k]


def add_number(values, k):
    return [value + k for value in values]


def multiply(values, k):
    return [value * k for value in values]


def sum_digits(values, k):
    return [sum(int(digit) for digit in str(abs(value))) for value in values]


def running_sums(values, k):
    sums = []
    for value in values:
        sums.append(value + (sums[-1] if sums else 0))
    return sums


def differences(values, k):
    return [after - before for before, after in zip(values, values[1:])]


def drop_repeats(values, k):
    return list(dict.fromkeys(values))


def move_first(values, k):
    for _ in range(k):
        values = values[1:] + values[:1]
    return values


def keep_places(values, k):
    return values[k - 1 :: k]


def total(values, k):
    return sum(values)


def spread(values, k):
    return max(values) - min(values) if values else 0


def count_rises(values, k):
    return sum(after > before for before, after in zip(values, values[1:]))


def longest_run(values, k):
    best = length = 0
    for place, value in enumerate(values):
        length = length + 1 if place and value == values[place - 1] else 1
        best = max(best, length)
    return best


def most_frequent(values, k):
    return max(sorted(set(values)), key=values.count) if values else 0


def count_all(values, k):
    return len(values)


def in_order(values, k):
    return sorted(values)


def backwards(values, k):
    return values[::-1]


def reverse_words(values, k):
    return [word[::-1] for word in values]


def keep_long(values, k):
    return [word for word in values if len(word) >= k]


def capitalise(values, k):
    return [word.upper() if place % k == 0 else word for place, word in enumerate(values, start=1)]


def cut_words(values, k):
    return [word[:k] for word in values]


def shift_letters(values, k):
    return ["".join(chr((ord(letter) - 97 + k) % 26 + 97) for letter in word.lower()) for word in values]


def by_length(values, k):
    return sorted(values, key=lambda word: (len(word), word))


def count_vowels(values, k):
    return sum(letter in "aeiou" for word in values for letter in word.lower())


def longest_word(values, k):
    return max(values, key=len) if values else "none"


def join_initials(values, k):
    return "".join(word[0] for word in values) or "none"


def keep_points(values, k):
    return [[name, points] for name, points in values if points >= k]


def give_points(values, k):
    return [[name, points + 10 if place % k == 0 else points] for place, (name, points) in enumerate(values, start=1)]


def add_up(values, k):
    sums = {}
    for name, points in values:
        sums[name] = sums.get(name, 0) + points
    return [[name, points] for name, points in sums.items()]


def by_points(values, k):
    return sorted(values, key=lambda entry: (-entry[1], entry[0]))


def total_points(values, k):
    return sum(points for _, points in values)


def list_names(values, k):
    return [name for name, _ in values]


def best_name(values, k):
    return max(values, key=lambda entry: entry[1])[0] if values else "none"


def list_points(values, k):
    return [points for _, points in values]


NUMBERS = Shape(
    "numbers",
    "a list of whole numbers",
    "The first line holds n, the number of numbers; the second line holds n whole numbers, separated by spaces.",
    (
        Step("Keep only the numbers that are divisible by {k}.", keep_multiples, (2, 5)),
        Step("Keep only the numbers that are greater than {k}.", keep_above, (-5, 40)),
        Step("Add {k} to each number.", add_number, (2, 30)),
        Step("Multiply each number by {k}.", multiply, (2, 9)),
        Step("Replace each number by the sum of its digits; a minus sign does not count.", sum_digits),
        Step("Replace each number by the sum of all numbers up to it, itself included.", running_sums),
        Step("Replace the list by the differences of neighbours, the later one minus the earlier one.", differences),
        Step("Of equal numbers keep only the first.", drop_repeats),
        Step("Move the first number to the end, and do this {k} times in all.", move_first, (2, 9)),
        Step(
            "Keep only the numbers whose place is divisible by {k}; the first has place 1.",
            keep_places,
            (2, 4),
        ),
    ),
    (
        Step("The answer is the sum of the numbers.", total),
        Step("The answer is the difference of the largest and the smallest number, 0 if there is none.", spread),
        Step("The answer is how many numbers are greater than the one right before them.", count_rises),
        Step("The answer is the length of the longest run of equal neighbours, 0 if there is no number.", longest_run),
        Step("The answer is the most frequent number, of several the smallest, 0 if there is none.", most_frequent),
        Step("The answer is how many numbers there are.", count_all),
        Step("The answer is the list of the numbers, the smallest first.", in_order),
        Step("The answer is the list of the numbers, the last one first.", backwards),
    ),
)
WORDS = Shape(
    "words",
    "a list of words in small letters",
    "The only line holds the words, separated by spaces; it is empty if there are none.",
    (
        Step("Write each word backwards.", reverse_words),
        Step("Keep only the words with at least {k} letters.", keep_long, (6, 8)),
        Step("Write the words whose place is divisible by {k} in capitals; the first has place 1.", capitalise, (2, 4)),
        Step("Cut each word after its first {k} letters, if it has more.", cut_words, (2, 5)),
        Step(
            "Write each word in small letters and replace each letter by the one {k} places further in the alphabet; a "
            "follows z.",
            shift_letters,
            (1, 20),
        ),
        Step("Of equal words keep only the first.", drop_repeats),
        Step("Move the first word to the end, and do this {k} times in all.", move_first, (2, 9)),
        Step("Keep only the words whose place is divisible by {k}; the first has place 1.", keep_places, (2, 4)),
    ),
    (
        Step("The answer is how many of all letters are a, e, i, o or u, small or capital.", count_vowels),
        Step("The answer is the longest word, of several the first, and none if there is no word.", longest_word),
        Step("The answer is a word of the first letters of all words, and none if there is no word.", join_initials),
        Step(
            "The answer is the list of the words, shorter ones first, and those of equal length as Python sorts them.",
            by_length,
        ),
        Step("The answer is the list of the words, the last one first.", backwards),
    ),
)
RECORDS = Shape(
    "records",
    "a list of results, each of which is a name and a number of points",
    "The first line holds n, the number of results; each of the next n lines holds a name and its points.",
    (
        Step("Keep only the results with at least {k} points.", keep_points, (20, 60)),
        Step(
            "Give the results whose place is divisible by {k} 10 points more; the first has place 1.",
            give_points,
            (2, 4),
        ),
        Step("Add up the points of each name, so that each stands once, where it stood first.", add_up),
        Step("Sort the results by points, the highest first, and equal ones by name.", by_points),
        Step("Move the first result to the end, and do this {k} times in all.", move_first, (2, 9)),
        Step(
            "Keep only the results whose place is divisible by {k}; the first has place 1.",
            keep_places,
            (2, 4),
        ),
    ),
    (
        Step("The answer is the sum of all points.", total_points),
        Step("The answer is the list of the names.", list_names),
        Step("The answer is the list of the points.", list_points),
        Step(
            "The answer is the name with the most points, of several the first, and none if there is no result.",
            best_name,
        ),
        Step("The answer is how many results there are.", count_all),
    ),
)
SHAPES = (NUMBERS, WORDS, RECORDS)
