"""Publish a run's adapter on the Hugging Face Hub: a folder first, then one commit, and nothing a second time."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from grpo_kit.adapters.adapter_config import TENSORS_FILE
from grpo_kit.config import RunConfig
from grpo_kit.config.arguments import require_type
from grpo_kit.data.hub import is_offline
from grpo_kit.publishing import hub_client
from grpo_kit.publishing.base import HUB_ID, find_base
from grpo_kit.publishing.folder import build_folder, list_files, read_facts
from grpo_kit.publishing.hub_client import Head, HubClient, TryAgainError
from grpo_kit.publishing.public_record import RECORD, list_own_words
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.runs.texts import show_controls

TRIES, LONGEST_WAIT = 4, 60.0  # of the upload, and seconds that are waited before another one
SHOWN = 200  # characters of the user's own words in a terminal
GITS_OWN = ".gitattributes"  # which the Hub puts into every repository


class Published(NamedTuple):
    """What was built and sent.

    Attributes:
        folder: the folder on this machine.
        own_words: {setting: text} of all that the run's author wrote and that the folder makes public.
        files: its files; `README.md` is the card.
        address: of the repository on the Hub; "" after a dry run.
        sent: names of the files that were sent, none where the Hub had them all.
        is_preview: whether the base is embedded in the kit, so that the folder cannot be sent.
    """

    folder: Path
    own_words: dict[str, str]
    files: list[Path]
    address: str
    sent: list[str]
    is_preview: bool = False

    def describe_own_words(self) -> list[str]:
        """`own_words` as lines for a terminal; a long text is cut and its length stated."""
        lines = []
        for name, text in self.own_words.items():
            words = " ".join(text.split())
            more = f"... ({len(text):,} characters)" if len(words) > SHOWN else ""
            lines.append(f"{name}: {show_controls(words[:SHOWN])}{more}")
        return lines


def publish(
    config: RunConfig,
    run: Run,
    to: str,
    private: bool = False,
    dry_run: bool = False,
    base: str | None = None,
    say: Callable[[str], None] = print,
) -> Published:
    """Build the run's `publish/` folder and put it on the Hub in one commit.

    The folder holds the adapter of the last stage that trained, its tokenizer and chat template, a card that is made
    from the run's own files, its curves, and its record without paths and names. Files that the repository has already
    are not sent again, and files of its own stay.

    Args:
        config: the run's configuration.
        run: a trained run.
        to: USER/REPO. The repository is created where there is none.
        private: whether only its owner may see the repository.
        dry_run: build the folder and send nothing; nothing is looked up on the Hub.
        base: the id on the Hub of a base that lies in a local folder.
        say: called with a sentence for each thing that happens.

    Returns:
        The folder, its files, and what was sent.

    Raises:
        ValueError: `to` is no id of a repository; the base is a local folder without an id or is not on the Hub; the
            adapter changes nothing; the run's last stage went on from an adapter that was made again; a setting is not
            the one that the run was made with; a file would hold a secret; a public repository was to be private; the
            repository was renamed, or holds an adapter of another making.
        FileNotFoundError: the run is not trained, or a file is missing.
        PermissionError: the Hub does not accept the token, or its owner may not write there.
        RuntimeError: the Hub refused, or is not to be asked (HF_HUB_OFFLINE).
        ConnectionError: the answer was lost; the same call continues.
        TypeError: an argument has another type.

    Example:
        >>> publish(config, run, "ada/nemotron-sums", dry_run=True)  # doctest: +SKIP
    """
    require_config_and_run(config, run)
    require_repository(to)
    run.require_trained()
    found = find_base(config.policy, base)
    if found.is_embedded and not dry_run:
        raise ValueError(
            f"The run's base is {found.name}, which is embedded in grpo-kit; the Hub does not have it, so nobody could "
            "load the adapter. See the folder and the card with --dry-run."
        )
    if not dry_run and is_offline():
        raise RuntimeError("HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, or add --dry-run.")
    client = None if dry_run else hub_client.open_client()
    if client and not client.has_model(found.name):
        raise ValueError(
            f"The Hub has no model {found.name!r}, which the run names as its base, or this account may not see it. "
            "Name the base with --base OWNER/NAME where it was a local folder."
        )
    facts = read_facts(config, run, to, found)
    own_words = list_own_words(facts)
    folder = build_folder(run, facts)
    files = list_files(folder)
    if client is None:
        return Published(folder, own_words, files, "", [], found.is_embedded)
    return Published(folder, own_words, files, client.address(to), send_files(client, to, files, private, say))


def require_repository(to: str) -> None:
    """Raise ValueError unless `to` can be the id of a repository on the Hub, TypeError unless it is a text."""
    require_type("to", to, str, "the id of a repository", 'Write "ada/nemotron-sums".')
    name = to.partition("/")[2]
    if not re.fullmatch(HUB_ID, to) or len(to) > 96 or re.search(r"--|\.\.", to) or name.endswith((".git", "-", ".")):
        raise ValueError(
            f"--to is {to[:200]!r}; a repository on the Hub is USER/REPO with at most 96 letters, digits, '-', '_' and "
            "'.', without '--' and '..'. Correct it, as in --to ada/nemotron-sums."
        )


def send_files(
    client: HubClient,
    repo: str,
    files: list[Path],
    private: bool,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Bring the repository to hold these files, in one commit; what else it holds stays.

    Before each try the repository is read, so a commit whose answer was lost is not made twice: a commit names the one
    that it follows, and the Hub refuses it if another one came between.

    Args:
        client: makes the calls.
        repo: USER/REPO.
        files: the files.
        private: whether a new repository is private.
        say: called with a sentence for each thing that happens.
        sleep: waits for a number of seconds.

    Returns:
        Names of the files that were sent.

    Raises:
        ValueError: the repository is public, and `private` is set; it has another name now; or it holds an adapter
            that was not published by grpo-kit.
        PermissionError, RuntimeError, ConnectionError: as the client; the last one after TRIES tries.
    """
    digests = {path.name: hub_client.digests_of(path) for path in files}
    changed: list[str] = []
    for number in range(1, TRIES + 1):
        try:
            head = client.read_head(repo)
            if head is None:
                client.create(repo, private)
                head = client.read_head(repo)
                if head is None:
                    raise RuntimeError(f"The Hub created {repo} and does not show it. Call again in a minute.")
                say(f"{repo} is new{', and private' if head.private else ''}")
            if private and not head.private:
                raise ValueError(
                    f"{repo} exists on the Hub and is public, and it was to be private; nothing was sent. Make it "
                    "private in its settings there, name another one with --to, or leave out --private."
                )
            _refuse_other(head, repo, digests)
            left = [name for name, known in digests.items() if head.files.get(name) not in known]
            if not left:
                if changed:
                    say("the answer was lost, and the Hub has all files: the commit was made")
                else:
                    say(f"{repo} has all {len(files)} files already; nothing was sent")
                return changed
            if replaced := [name for name in left if name in head.files]:
                say(f"{repo} has another {', '.join(replaced)}, which will be replaced")
            if others := sorted(name for name in head.files if name not in (*digests, GITS_OWN)):
                say(f"{repo} also holds {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}; they stay")
            changed = left
            address = client.commit(repo, [path for path in files if path.name in left], head.commit)
            say(f"sent {len(left)} of {len(files)} files in one commit: {address}")
            return changed
        except (TryAgainError, ConnectionError) as error:
            wait = error.seconds if isinstance(error, TryAgainError) else 2.0**number
            if number == TRIES or wait > LONGEST_WAIT:
                raise
            sleep(wait)
    raise AssertionError("the last try returns or raises")


def _refuse_other(head: Head, repo: str, digests: Mapping[str, set[str]]) -> None:
    """Raise ValueError where a repository is not the one that was meant, or holds an adapter of another making."""
    if head.name != repo:
        raise ValueError(
            f"{repo} is called {head.name} on the Hub now, and the card would name it wrongly; nothing was sent. Write "
            f"--to {head.name}."
        )
    held = head.files.get(TENSORS_FILE)
    is_ours = RECORD in head.files  # the kit always publishes it
    if held and TENSORS_FILE in digests and held not in digests[TENSORS_FILE] and not is_ours:
        raise ValueError(
            f"{repo} holds an {TENSORS_FILE} that the kit did not publish and that would be replaced; nothing was "
            "sent. Name another repository with --to, or remove that file there."
        )
