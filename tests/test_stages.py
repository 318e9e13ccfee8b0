"""Which context stage a run is in is read from its metrics alone."""

import pytest

from grpo_kit import config
from grpo_kit.config import Stage
from grpo_kit.stages import stage_of


def rows(*parts):
    """(count, share of completions cut, reward) one after another."""
    return [
        {"completions/clipped_ratio": clipped, "reward": reward}
        for count, clipped, reward in parts
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("stages", "seen", "number"),
    [
        ([Stage(512, 3), Stage(1024, 2), Stage(2048)], rows(), 0),
        ([Stage(512, 3), Stage(1024, 2), Stage(2048)], rows((2, 0, 0)), 0),
        ([Stage(512, 3), Stage(1024, 2), Stage(2048)], rows((3, 0, 0)), 1),
        ([Stage(512, 3), Stage(1024, 2), Stage(2048)], rows((4, 0, 0)), 1),
        ([Stage(512, 3), Stage(1024, 2), Stage(2048)], rows((5, 0, 0)), 2),
        ([Stage(512, 3), Stage(1024, 2), Stage(2048)], rows((99, 0, 0)), 2),
        ([Stage(512), Stage(1024, enter="clipped")], rows((50, 0.1, 0)), 0),
        ([Stage(512), Stage(1024, enter="clipped")], rows((50, 0.1, 0), (9, 0.5, 0)), 1),
        ([Stage(512), Stage(1024, enter="clipped")], rows((9, 0.9, 0)), 0),  # too few to say
        ([Stage(512, 5), Stage(1024, enter="clipped")], rows((5, 0.0, 0)), 1),  # its steps are over anyway
        ([Stage(512), Stage(1024, enter="plateau")], rows((20, 0, 0.1), (19, 0, 0.1)), 0),
        ([Stage(512), Stage(1024, enter="plateau")], rows((20, 0, 0.1), (20, 0, 0.1)), 1),
        ([Stage(512), Stage(1024, enter="plateau")], rows((20, 0, 0.1), (20, 0, 0.3)), 0),
        # A stage looks at its own rows only.
        ([Stage(512), Stage(1024, enter="clipped"), Stage(2048, enter="clipped")], rows((10, 0.9, 0), (5, 0.9, 0)), 1),
        ([Stage(512), Stage(1024, enter="clipped"), Stage(2048, enter="clipped")], rows((10, 0.9, 0), (10, 0.9, 0)), 2),
    ],
)
def test_the_stage_of_the_coming_step(stages, seen, number):
    assert stage_of(stages, seen) == number


def test_stages_come_from_yaml_and_dotlist(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "grpo:\n  stages: [{max_completion_length: 512, steps: 100}, {max_completion_length: 1024, enter: plateau}]\n"
    )
    assert config.load_config(["tiny", str(path)]).grpo.stages == [Stage(512, 100), Stage(1024, None, "plateau")]
    chosen = config.load_config(
        ["tiny"], ["grpo.stages=[{max_completion_length: 8, steps: 2},{max_completion_length: 16}]"]
    )
    assert chosen.grpo.stages == [Stage(8, 2), Stage(16)]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[{max_completion_length: 8}, {max_completion_length: 16}]", "would never begin"),
        ("[{max_completion_length: 0, steps: 1}]", "at least 1"),
        ("[{max_completion_length: 8, steps: 1, enter: never}]", "must be one of steps, clipped, plateau"),
        ("[{length: 8}]", "length"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages, said):
    with pytest.raises(ValueError, match=said):
        config.load_config(["tiny"], [f"grpo.stages={stages}"])
