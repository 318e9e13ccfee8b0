"""The command line called within the test's own process."""

from typer.testing import CliRunner

from grpo_kit.cli.main import app
from tests.helpers.settings import SMALL

# Settings with which the data and one step of training take a second
FEW = ["data.limit=80", "data.test_size=10", "data.val_size=5", *SMALL[3:], "grpo.max_steps=1"]


def call(*words, status=0):
    """What `grpo-kit WORDS` prints, its spaces and line ends joined; it must exit with `status`."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == status, done.output + str(done.exception)
    return " ".join(done.output.split())


def everything(folder):
    """The paths of all files and folders below `folder`, relative to it, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
