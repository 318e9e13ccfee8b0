"""When a completion counts as right: one rule for training, screening, evaluation, and what learns from completions."""

RIGHT = 1.0  # what a verifier pays; a share of it is a share of the way, and not right


def is_right(paid: float | None) -> bool:
    """Whether a verifier's payment says that the completion is right; None says that it could not be judged.

    >>> is_right(1.0), is_right(0.9), is_right(None)
    (True, False, False)
    """
    return paid == RIGHT
