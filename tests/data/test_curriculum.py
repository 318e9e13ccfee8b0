"""Easy rows first, hard rows last, every source at every moment; checked literally where the order is strict."""

import random

import pytest

from grpo_kit import config
from grpo_kit.data import curriculum


def rows(*rates, source="s"):
    return [{"id": f"{source}{i}", "source": source, "pass_rate": rate} for i, rate in enumerate(rates)]


def rates(ordered):
    return [row["pass_rate"] for row in ordered]


def test_without_spread_the_order_is_strictly_from_easy_to_hard():
    assert rates(curriculum.order_rows(rows(0.2, 0.8, 0.5, 0.3, 0.6), 5, 0.0, 1)) == [0.8, 0.6, 0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, [0.9]),
        (3, [0.9, 0.5, 0.1]),  # fewer than there are: those nearest to what is aimed at, 0.9 to 0.1 in equal steps
        (5, [0.9, 0.7, 0.5, 0.3, 0.1]),
        (9, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (18, [0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]),  # twice each
    ],
)
def test_a_requested_number_of_rows_is_spaced_evenly_over_the_pass_rates(length, expected):
    given = rows(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert rates(curriculum.order_rows(given, length, 0.0, 1)) == expected


def test_rows_of_one_pass_rate_are_all_used_before_any_comes_again():
    given = rows(*[0.5] * 10, *[0.25] * 10)
    ordered = curriculum.order_rows(given, 20, 0.1, 1)
    assert sorted(row["id"] for row in ordered) == sorted(row["id"] for row in given)
    names = [row["id"] for row in curriculum.order_rows(given, 50, 0.1, 1)]
    assert {names.count(row["id"]) for row in given} <= {1, 2, 3} and len(names) == 50


def test_lower_targets_do_not_skip_rows_of_equal_pass_rate():
    assert curriculum._match_rates([0.5] * 4 + [0.75] * 4, [0.52, 0.53, 0.54]) == [0, 1, 2]
    assert curriculum._match_rates([0.1, 0.2, 0.3], [0.9, 0.8]) == [2, 1]
    assert curriculum._match_rates([0.1, 0.2, 0.3], [-1.0, -2.0, -3.0]) == [2, 1, 0]


def test_the_pass_rate_falls_along_a_line_with_the_spread_asked_for():
    rng = random.Random(0)
    given = rows(*(rng.uniform(0.1, 0.9) for _ in range(5000)))
    ordered = rates(curriculum.order_rows(given, 1000, 0.1, 1))
    quarters = [ordered[i : i + 250] for i in range(0, 1000, 250)]
    means = [sum(part) / len(part) for part in quarters]
    assert means == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.03)
    middle = ordered[450:550]
    mean = sum(middle) / len(middle)
    assert (sum((rate - mean) ** 2 for rate in middle) / len(middle)) ** 0.5 == pytest.approx(0.1, abs=0.03)


def test_mostly_easy_prompts_still_come_before_harder_ones():
    """Where the low rates run out, what is left must not rise again."""
    rng = random.Random(0)
    ordered = rates(curriculum.order_rows(rows(*(rng.betavariate(8, 2) for _ in range(600))), 600, 0.05, 1))
    means = [sum(ordered[i : i + 100]) / 100 for i in range(0, 600, 100)]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("length", [90, 900, 1200])
def test_every_window_has_the_mixs_shares(length):
    rng = random.Random(0)
    given = rows(*(rng.uniform(0.1, 0.5) for _ in range(600)), source="hard")
    given += rows(*(rng.uniform(0.5, 0.9) for _ in range(200)), source="easy")
    given += rows(*(rng.uniform(0.1, 0.9) for _ in range(100)), source="other")
    ordered = curriculum.order_rows(given, length, 0.1, 1)
    for start in range(0, length - 35):
        window = [row["source"] for row in ordered[start : start + 36]]
        for source, share in (("hard", 24), ("easy", 8), ("other", 4)):
            assert abs(window.count(source) - share) <= 2, (start, source)
    if length == 900:
        assert len({row["id"] for row in ordered}) == 900


def test_shares_that_do_not_divide_are_given_in_turn():
    assert curriculum._share_places({"a": 3, "b": 1}, 8) == {"a": [0, 1, 3, 4, 5, 7], "b": [2, 6]}
    assert curriculum._share_places({"a": 1, "b": 1000}, 3) == {"a": [], "b": [0, 1, 2]}


def test_the_same_rows_and_seed_give_the_same_order_whatever_order_they_come_in():
    rng = random.Random(0)
    given = rows(*(rng.choice([0.25, 0.5, 0.75]) for _ in range(60))) + rows(*[0.5] * 20, source="t")
    shuffled = rng.sample(given, len(given))
    first, second, other = (
        curriculum.order_rows(some, 40, 0.1, seed) for some, seed in ((given, 1), (shuffled, 1), (given, 2))
    )
    assert first == second != other


def test_an_empty_list_cannot_be_ordered():
    with pytest.raises(ValueError, match="0 rows to order.*data.pass_rate"):
        curriculum.order_rows([], 5, 0.1, 1)


@pytest.mark.parametrize("band", ["[0.9,0.1]", "[0.1]", "[-0.1,0.5]", "[0.1,1.5]", "[]", "[0.1,0.5,0.9]", "[nan,0.5]"])
def test_an_invalid_pass_rate_band_is_refused(band):
    with pytest.raises(ValueError, match=r"data\.pass_rate is .*data\.pass_rate=\[0\.1,0\.9\]"):
        config.load_config(["tiny"], [f"data.pass_rate={band}"])


@pytest.mark.parametrize("override", ["num_generations=0", "samples_per_round=0", "sigma=-0.1"])
def test_invalid_screening_settings_are_refused(override):
    with pytest.raises(ValueError, match=rf"screening\.{override.split('=')[0]} is"):
        config.load_config(["tiny"], [f"screening.{override}"])
