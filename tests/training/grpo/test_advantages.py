"""Advantages against the group's mean and against the others' mean, with the numbers that NeMo-RL computes."""

import pytest
import torch

from grpo_kit.training.grpo.advantages import compute_advantages, is_flat

NAN = float("nan")


@pytest.mark.parametrize(
    ("right", "n", "kind", "of_right", "of_wrong"),
    [
        (1, 8, "group", 2.475, -0.354),
        (
            1,
            8,
            "leave_one_out",
            1.000,
            -0.378,
        ),  # the others of the one right are all alike: its difference stays as it is
        (7, 8, "group", 0.354, -2.475),
        (7, 8, "leave_one_out", 0.378, -1.000),
        (4, 8, "group", 0.935, -0.935),
        (4, 8, "leave_one_out", 1.069, -1.069),
        (2, 8, "leave_one_out", 2.268, -0.586),
        (1, 16, "group", 3.750, -0.250),
        (1, 16, "leave_one_out", 1.000, -0.258),
    ],
)
def test_advantages_equal_those_of_nemo_rl(right, n, kind, of_right, of_wrong):
    rewards = torch.tensor([1.0] * right + [0.0] * (n - right))
    values = compute_advantages(rewards, n, kind)
    assert values[:right].tolist() == pytest.approx([of_right] * right, abs=5e-4)
    assert values[right:].tolist() == pytest.approx([of_wrong] * (n - right), abs=5e-4)


def test_without_normalisation_an_advantage_is_the_difference_from_the_mean():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert compute_advantages(rewards, 4, "group", normalize=False).tolist() == [0.75, -0.25, -0.25, -0.25]
    assert compute_advantages(rewards, 4, "leave_one_out", normalize=False).tolist() == pytest.approx(
        [1.0, -1 / 3, -1 / 3, -1 / 3]
    )


def test_groups_do_not_affect_each_other():
    together = compute_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2)
    assert together.tolist() == pytest.approx([0.7071, -0.7071, 0.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("kind", ["group", "leave_one_out"])
@pytest.mark.parametrize("rewards", [[0.95] * 7 + [0.0], [0.1 + 0.2, 0.3] * 4, [1e-8, 0.0] * 4, [1 / 3] * 8])
def test_rounding_differences_within_a_group_give_no_large_advantage(kind, rewards):
    assert compute_advantages(torch.tensor(rewards), 8, kind).abs().max() < 3


def test_a_reward_of_none_is_left_out_of_the_mean_and_gets_no_advantage():
    values = compute_advantages(torch.tensor([1.0, NAN, 0.0, NAN]), 4)
    assert values.tolist() == pytest.approx([0.7071, 0.0, -0.7071, 0.0], abs=1e-3)
    assert compute_advantages(torch.tensor([1.0, NAN, NAN, NAN]), 4, "leave_one_out").tolist() == [0.0] * 4
    assert compute_advantages(torch.tensor([NAN] * 4), 4).tolist() == [0.0] * 4


def test_group_normalised_advantages_equal_trls_without_its_epsilon():
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(0))
    groups = rewards.view(-1, 8)
    trl = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    assert compute_advantages(rewards, 8) == pytest.approx(trl.flatten(), rel=1e-3)


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [
        ([1.0, 1.0, 1.0, 1.0], True),
        ([0.0, 0.0, 0.0, 0.0], True),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], True),
        ([1.0, 0.0, 0.0, 0.0], False),
        ([1.1, 1.0, 1.0, 1.0], False),
        ([NAN, 1.0, NAN, 1.0], True),
        ([NAN, 1.0, NAN, 0.0], False),
        ([NAN] * 4, True),
    ],
)
def test_a_group_is_flat_when_all_its_known_rewards_are_equal(rewards, flat):
    assert is_flat(torch.tensor(rewards), 4).tolist() == [flat]
