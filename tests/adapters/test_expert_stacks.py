"""A pair for all experts is taken apart by its shapes; what fits no way of stacking, or two, is not guessed."""

import pytest
import torch

from grpo_kit.adapters.expert_stacks import recognize_stacking

EXPERTS, RANK, OUT, IN = 4, 2, 3, 5


@pytest.mark.parametrize(
    ("a", "b", "fits"),
    [
        ((8, 5), (3, 8), (2, False)),  # flat
        ((8, 3), (5, 8), (2, True)),  # flat, by PEFT before 0.19
        ((4, 2, 5), (4, 3, 2), (2, False)),
        ((4, 2, 5), (3, 4, 2), (2, False)),  # experts on the second axis of B
        ((1, 2, 5), (4, 3, 2), (2, False)),  # one A for all experts
        ((4, 2, 5), (1, 3, 2), (2, False)),  # one B for all experts
        ((9, 5), (3, 9), None),  # 9 rows are not those of 4 experts
        ((8, 5), (3, 4), None),  # the ranks differ
        ((8, 7), (3, 8), None),  # of another base
        ((0, 5), (3, 0), None),  # no rank
        ((4, 0, 5), (4, 3, 0), None),
        ((3, 2, 5), (3, 3, 2), None),  # of three experts
        ((4, 2, 7), (4, 3, 2), None),
        ((8, 5), (4, 3, 2), None),  # one flat, one not
        ((5,), (3,), None),
    ],
)
def test_a_stack_is_recognized_by_its_shapes(a, b, fits):
    stacking = recognize_stacking(a, b, EXPERTS, (OUT, IN), "rank-first")
    assert (stacking and stacking[:2]) == fits
    if stacking and not stacking[1]:
        viewed = [view(torch.zeros(shape)).shape for shape, view in zip((a, b), stacking[2])]
        assert [shape[1:] for shape in viewed] == [(RANK, IN), (OUT, RANK)]
        assert all(shape[0] in (1, EXPERTS) for shape in viewed)


def test_a_b_that_fits_both_axes_is_not_guessed():
    assert recognize_stacking((4, 2, 5), (4, 4, 2), 4, (4, 5), "rank-first") is None


@pytest.mark.parametrize("layout", ["rank-first", "expert-first"])
def test_a_flat_b_is_read_rank_by_rank_or_expert_by_expert(layout):
    experts = torch.arange(EXPERTS * OUT * RANK).view(EXPERTS, OUT, RANK)
    axes = (1, 2, 0) if layout == "rank-first" else (1, 0, 2)
    flat = experts.permute(*axes).reshape(OUT, -1)
    _, _, (_, split_b) = recognize_stacking((8, IN), (OUT, 8), EXPERTS, (OUT, IN), layout)
    assert torch.equal(split_b(flat), experts)
