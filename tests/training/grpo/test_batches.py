"""Batches are joined, cut to groups and cut to rows with a gradient, each column padded on its own side."""

import pytest
import torch

from grpo_kit.training.grpo.batches import drop_rows_without_gradient, gather_groups, join_batches, take_groups


def batch_of(prompt, completion, advantages):
    """A batch whose rows have so many prompt and completion tokens; the ids are 1, 2, 3 and so on, padding is 9."""
    rows, longest = len(advantages), (max(prompt), max(completion))
    fields = {
        "prompt_ids": [[9] * (longest[0] - n) + list(range(1, n + 1)) for n in prompt],
        "prompt_mask": [[0] * (longest[0] - n) + [1] * n for n in prompt],
        "completion_ids": [list(range(1, n + 1)) + [9] * (longest[1] - n) for n in completion],
        "completion_mask": [[1] * n + [0] * (longest[1] - n) for n in completion],
        "advantages": advantages,
        "num_items_in_batch": float(rows),
    }
    return {name: torch.tensor(value) for name, value in fields.items()}


def test_the_narrower_batch_is_padded_on_the_side_that_belongs_to_the_column():
    joined = join_batches(batch_of([1], [3], [1.0]), batch_of([2], [1], [-1.0]), pad_token=9)
    assert joined["prompt_ids"].tolist() == [[9, 1], [1, 2]] and joined["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert joined["completion_ids"].tolist() == [[1, 2, 3], [1, 9, 9]]
    assert joined["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert joined["advantages"].tolist() == [1.0, -1.0] and "num_items_in_batch" not in joined


def test_groups_are_taken_in_the_order_asked_for_and_their_tokens_counted():
    batch = batch_of([1, 1, 1, 1], [1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0])
    taken = take_groups(batch, torch.tensor([1]), num_generations=2)
    assert taken["advantages"].tolist() == [3.0, 4.0] and taken["num_items_in_batch"] == 7
    swapped = take_groups(batch, torch.tensor([1, 0]), num_generations=2)
    assert swapped["advantages"].tolist() == [3.0, 4.0, 1.0, 2.0]


def test_rows_of_equal_prompts_come_into_the_same_micro_batches():
    first, second = (batch_of([2, 3], [1, 4], [1.0, 2.0]), batch_of([3, 2], [4, 4], [3.0, 4.0]))
    second |= {"completion_ids": second["completion_ids"] + 10}
    gathered = gather_groups([first, second])
    assert [part["advantages"].tolist() for part in gathered] == [[1.0, 4.0], [2.0, 3.0]]
    assert [part["prompt_ids"].tolist() for part in gathered] == [[[9, 1, 2]] * 2, [[1, 2, 3]] * 2]
    assert [part["completion_ids"][1].tolist() for part in gathered] == [[11, 12, 13, 14]] * 2
    assert all(part["num_items_in_batch"] == 2 for part in gathered)
    assert gather_groups(gathered)[1]["advantages"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("loss_type", "factor"),
    [("dapo", 1.0), ("cispo", 1.0), ("grpo", 2 / 3), ("dr_grpo", 2 / 3), ("bnpo", 3 / 8)],  # 2 of 3 rows, 3 of 8 tokens
)
def test_rows_without_a_gradient_are_dropped_with_the_columns_that_only_they_needed(loss_type, factor):
    batch = batch_of([1, 3, 2], [1, 5, 2], [1.0, 0.0, -1.0])
    smaller, by = drop_rows_without_gradient(batch, loss_type, at_least=0)
    assert smaller["advantages"].tolist() == [1.0, -1.0] and by == pytest.approx(factor)
    assert smaller["prompt_ids"].tolist() == [[9, 1], [1, 2]] and smaller["completion_ids"].tolist() == [[1, 9], [1, 2]]


def test_as_many_rows_remain_as_another_process_needs_and_none_where_none_has_a_gradient():
    flat = batch_of([1, 1], [2, 1], [0.0, 0.0])
    assert drop_rows_without_gradient(flat, "dapo", at_least=0) == (None, 0.0)
    smaller, _ = drop_rows_without_gradient(flat, "dapo", at_least=1)
    assert smaller["completion_ids"].tolist() == [[1, 2]]


def test_what_tools_returned_is_in_the_completion_and_not_in_the_loss():
    batch = batch_of([1, 1], [4, 3], [1.0, -1.0]) | {"tool_mask": torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1]])}
    assert take_groups(batch, torch.tensor([0]), num_generations=2)["num_items_in_batch"] == 2
    smaller, by = drop_rows_without_gradient(batch, "bnpo", at_least=0)  # nothing of the second row counts
    assert smaller["completion_ids"].tolist() == [[1, 2, 3, 4]] and smaller["tool_mask"].tolist() == [[1, 0, 0, 1]]
    assert by == 1.0 and drop_rows_without_gradient(batch, "grpo", at_least=0)[1] == 0.5
    joined = join_batches(batch, batch_of([1], [5], [1.0]) | {"tool_mask": torch.ones(1, 5).long()}, pad_token=9)
    assert joined["tool_mask"].shape == (3, 5)
