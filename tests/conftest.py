"""Fixtures that many tests share: the full data sets, one small trained run, an imitation of Kaggle.

Tests have no network. The slowest files run first.
"""

import gc
import os
import shlex
import signal
import sys
import time
import types
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRPO_KIT_RUN_PROGRAMS"] = "anyway"  # continuous integration has tokens in its environment
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # xdist sets it, and a console that is created then keeps that width
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as under nohup; tests and their processes are interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from tests.helpers import processes
from tests.helpers.settings import SHARED, SMALL

# jsonschema has it build 38 grammars, 3 seconds in each process, for formats of addresses that no schema here names.
sys.modules["rfc3987_syntax"] = None

# Files that execute notebooks, a browser, wheels, several processes, benchmarks or the demo. `make test-fast` leaves
# out these files and single tests that are marked `slow`. They run first, the longest ones at the front, so that no
# worker process starts one of them at the end.
SLOW_FILES = (
    "notebooks/test_notebook_places", "notebooks/test_notebooks", "runs/test_processes",
    "display/test_board_in_browser", "benchmarks/test_benchmarks", "cli/test_demo", "kaggle/test_wheels",
    "evaluation/test_rehearsal", "handoff/test_nemo_megatron",
)  # fmt: skip
LONG_FILES = (
    "training/grpo/test_trainer", "nemotron/test_experts", "planning/test_memory", "training/test_train",
    "tuning/test_tune", "evaluation/test_screening", "evaluation/test_screening_rounds", "test_notes",
)  # fmt: skip
TESTS = Path(__file__).parent
assert all((TESTS / f"{name}.py").is_file() for name in SLOW_FILES + LONG_FILES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Let the workers be forks of one process, which has imported the libraries; each alone would take ten seconds."""
    processes.start_server()
    for spec in specs:
        spec.python = shlex.join([sys.executable, "-S", "-E", processes.__file__])


def pytest_collection_modifyitems(items):
    rank = {TESTS / f"{name}.py": number for number, name in enumerate(SLOW_FILES + LONG_FILES)}
    for item in items:
        if rank.get(item.path, len(rank)) < len(SLOW_FILES):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish():
    gc.freeze()  # millions of objects of imported libraries, which no collection needs to visit again


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of full data sets next to the checkout; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist; this test reads full data sets")
    return SHARED


@pytest.fixture(scope="session")
def math_reward():
    from grpo_kit.rewards.tools.loading import load_reward

    return load_reward("math_answer.py:math_reward")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, math_reward):
    """(config, run): the tiny policy, measured before and after four real GRPO steps. Tests must not change it."""
    from grpo_kit import config
    from grpo_kit.data.preparation import prepare
    from grpo_kit.evaluation.compare import compare
    from grpo_kit.evaluation.evaluate import measure
    from grpo_kit.runs.run import find_run
    from grpo_kit.training import train

    chosen = config.load_config(["tiny"], SMALL)
    run = find_run("small", tmp_path_factory.mktemp("trained") / "runs")
    prepare(chosen, run)
    measure(chosen, run, "before", math_reward)
    train.train(chosen, run, [math_reward, lambda completions, **_: [1.0] * len(completions)])
    measure(chosen, run, "after", math_reward)
    compare(run)
    return chosen, run


@pytest.fixture(scope="session")
def tiny_policy():
    """(model, tokenizer) of the embedded policy, shared by tests that do not change it."""
    from grpo_kit import config
    from grpo_kit.policy.load import load_policy

    return load_policy(config.Policy())


@pytest.fixture
def loopback(tmp_path, monkeypatch):
    """A Kaggle on loopback that the official client uses as the real one; `slept` lists the pauses in seconds."""
    from kagglesdk import kaggle_env

    from grpo_kit.kaggle import client as client_module
    from grpo_kit.kaggle.client import KaggleClient
    from tests.helpers.fake_kaggle import KEY, USER, FakeKaggle

    fake = FakeKaggle()
    fake.slept, client = [], KaggleClient
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, fake.url)
    clock = types.SimpleNamespace(sleep=fake.slept.append, time=time.time)
    monkeypatch.setattr("urllib3.util.retry.time", clock)  # the pauses between tries
    monkeypatch.setattr(
        client_module, "KaggleClient", lambda credentials, sleep=fake.slept.append: client(credentials, sleep)
    )
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    for name, value in (
        ("KAGGLE_USERNAME", USER),
        ("KAGGLE_KEY", KEY),
        ("HOME", str(tmp_path)),
        ("NO_PROXY", "127.0.0.1"),
    ):
        monkeypatch.setenv(name, value)
    yield fake
    fake.close()


@pytest.fixture
def far_east(monkeypatch):
    """A machine whose clock is eight hours ahead of UTC."""
    monkeypatch.setenv("TZ", "CST-8")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
