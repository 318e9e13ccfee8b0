"""Context stages are read from the metrics alone; a time limit counts from the start of the process."""

import time
from types import SimpleNamespace

import psutil
import pytest

from grpo_kit import config
from grpo_kit.config import Stage
from grpo_kit.data.preparation import prepare
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import callbacks, train
from grpo_kit.training.callbacks import find_stage, session_deadline
from tests.helpers.settings import SMALL


def rows(*parts):
    """(count, share of completions cut, reward) one after another."""
    return [
        {"completions/clipped_ratio": clipped, "reward": reward}
        for count, clipped, reward in parts
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("stages", "rows", "number"),
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
def test_the_stage_of_the_next_step_is_found_from_earlier_rows(stages, rows, number):
    assert find_stage(stages, rows) == number


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
    ("stages", "message"),
    [
        ("[{max_completion_length: 8}, {max_completion_length: 16}]", "would never begin"),
        ("[{max_completion_length: 0, steps: 1}]", "at least 1"),
        ("[{max_completion_length: 8, steps: 1, enter: never}]", "must be one of steps, clipped, plateau"),
        ("[{length: 8}]", "length"),
    ],
)
def test_invalid_stages_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        config.load_config(["tiny"], [f"grpo.stages={stages}"])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{beta: -0.1}]", "beta -0.1"),
        ("[{learning_rate: 0}]", "learning_rate 0.0"),
    ],
)
def test_a_stage_s_own_settings_are_checked(stages, message):
    with pytest.raises(ValueError, match=message):
        config.load_config(["tiny"], [f"grpo.stages={stages}"])


STAGED = [
    *SMALL, "grpo.max_steps=6", "grpo.lr_scheduler_type=linear", "grpo.eval_steps=0", "grpo.save_steps=1",
    "run.report_to=[]",
    "grpo.stages=[{max_completion_length: 30, steps: 2}, "
    "{max_completion_length: 34, steps: 2, beta: 0.1, epsilon_high: 0.4, "
    "learning_rate: 1e-4}, {max_completion_length: 32}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def staged(tmp_path_factory, math_reward):
    """(run, what each step was computed with): where TRL computes the loss, after the probe step."""
    chosen = config.load_config(["tiny"], STAGED)
    run, settings = find_run("r", tmp_path_factory.mktemp("staged")), []
    prepare(chosen, run)
    with pytest.MonkeyPatch.context() as patch:
        make = train.make_trainer

        def watched(*args, **kwargs):
            trainer = make(*args, **kwargs)
            original_loss = trainer.compute_loss

            def compute_loss(*args, **kwargs):
                rate = round(trainer.optimizer.param_groups[0]["lr"], 9)
                settings.append((trainer.max_completion_length, trainer.beta, trainer.epsilon_high, rate))
                return original_loss(*args, **kwargs)

            trainer.compute_loss = compute_loss
            return trainer

        patch.setattr(train, "make_trainer", watched)
        train.train(chosen, run, [math_reward, shape])
    return run, settings[1:]


def shape(completions, **_):
    return [1.0] * len(completions)


@pytest.mark.slow
def test_a_stage_sets_kl_clip_and_rate_of_its_steps_and_restores_them(staged):
    run, settings = staged
    assert settings == [
        (30, 0.0, 0.28, 1e-3), (30, 0.0, 0.28, round(1e-3 * 5 / 6, 9)),
        (34, 0.1, 0.4, round(1e-4 * 4 / 6, 9)), (34, 0.1, 0.4, round(1e-4 * 3 / 6, 9)),
        (32, 0.0, 0.28, round(1e-3 * 2 / 6, 9)), (32, 0.0, 0.28, round(1e-3 * 1 / 6, 9)),
    ]  # fmt: skip
    rows = read_lines(run.metrics)
    assert [row["stage"] for row in rows] == [0, 0, 1, 1, 2, 2]
    # The KL is there where it counts, and nowhere else.
    assert [row.get("kl") is not None for row in rows] == [False, False, True, True, False, False]


@pytest.mark.slow
def test_a_training_interrupted_within_a_stage_gives_the_same_result(staged, tmp_path, math_reward):
    chosen = config.load_config(["tiny"], STAGED)
    run, steps = find_run("r", tmp_path), []
    prepare(chosen, run)
    train.train(chosen, run, [math_reward, shape], steps.append, should_stop=lambda: len(steps) == 3)
    assert len(read_lines(run.metrics)) == 3
    train.train(chosen, run, [math_reward, shape])
    assert hash_of(run.adapter) == hash_of(staged[0].adapter)
    assert all(row["grad_norm"] > 0 for row in read_lines(run.metrics))  # or equal adapters would say nothing


def test_a_batch_that_is_used_twice_keeps_its_stage():
    """A batch that was sampled without reference log-probs must not be trained on with a KL term."""
    grpo = config.Grpo(stages=[Stage(8, 3), Stage(16, beta=0.1)], num_iterations=2)
    metrics = SimpleNamespace(rows=rows((3, 0, 0)), extra={})
    schedule = SimpleNamespace(base_lrs=[1e-5], get_last_lr=lambda: [1e-5])
    trainer = SimpleNamespace(
        generation_config=SimpleNamespace(),
        lr_scheduler=schedule,
        optimizer=SimpleNamespace(param_groups=[{"lr": 1e-5}]),
    )
    stages = callbacks.StageCallback(trainer, grpo, metrics)
    args = SimpleNamespace(num_iterations=2)
    stages.on_step_begin(args, None, None)
    assert metrics.extra["stage"] == 0 and trainer.beta == 0.0
    metrics.rows = rows((4, 0, 0))
    stages.on_step_begin(args, None, None)
    assert metrics.extra["stage"] == 1 and trainer.beta == 0.1


def test_the_deepscaler_preset_samples_128_prompts_8_times_at_three_lengths():
    grpo = config.load_config(["deepscaler"]).grpo
    assert grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps == 128 * 8 and grpo.num_generations == 8
    assert [(s.max_completion_length, s.steps, s.beta, s.epsilon_high, s.learning_rate) for s in grpo.stages] == [
        (8192, 240, 0.0, 0.2, 2e-6), (16384, 290, 1e-3, 0.28, 2e-6), (24576, 50, 1e-4, 0.28, 5e-7),
    ]  # fmt: skip
    assert sum(stage.steps for stage in grpo.stages) == grpo.max_steps


def test_the_deadline_counts_from_the_process_start_and_reserves_time_for_packing():
    began = psutil.Process().create_time()
    assert session_deadline("100h", 60, {}) == pytest.approx(began + 100 * 3600 - 60, abs=1)
    assert session_deadline(None, 60, {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}) == pytest.approx(
        began + 12 * 3600 - 60, abs=1
    )
    assert session_deadline(None, 60, {"COLAB_RELEASE_TAG": "x"}) is not None
    assert session_deadline(None, 60, {}) is None


def test_a_deadline_in_the_past_becomes_the_present():
    before = time.time()
    assert before <= session_deadline("1s", 3600, {}) <= time.time()
