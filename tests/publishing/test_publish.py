"""One commit with exactly the files of the list, whatever the connection does and however often it is called."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

from grpo_kit.config import Policy
from grpo_kit.display import console
from grpo_kit.publishing import hub_client
from grpo_kit.publishing import publish as publishing
from grpo_kit.publishing.base import find_base
from grpo_kit.publishing.hub_client import HubClient
from grpo_kit.publishing.publish import Published, publish, send_files
from grpo_kit.runs.run import Run
from tests.helpers import processes
from tests.helpers.writable_hub import TOKEN, Repository, WritableHub

REPO, HYBRID = "ada/sums", "org/hybrid"
LISTED = [  # what is published of a run, whatever else lies in its folder
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "curves.png", "run.json",
    "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip
FILES = {"README.md": b"a card", "adapter_model.safetensors": bytes(range(256)) * 9, "run.json": b"{}"}


@pytest.fixture
def hub(monkeypatch):
    """A Hub on loopback that the library uses; `slept` lists its pauses and ours, in seconds."""
    fake = WritableHub()
    fake.slept = []
    fake.repositories[HYBRID] = Repository()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", fake.slept.append)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield fake
    fake.close()


@pytest.fixture
def files(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return [tmp_path / name for name in FILES]


@pytest.fixture(scope="module")
def copied(trained, tmp_path_factory):
    """(config, run): a copy of the small run that may be changed."""
    config, run = trained
    copy = Run(tmp_path_factory.mktemp("publish") / "runs", run.name)
    shutil.copytree(run.path, copy.path)
    return config, copy


@pytest.fixture
def on_hybrid(monkeypatch):
    """Let the small run have a base whose id the Hub knows."""
    base = find_base(Policy(model=HYBRID))
    monkeypatch.setattr(publishing, "find_base", lambda policy, named: base)


def send(hub, files, private=False):
    said = []
    sent = send_files(HubClient(TOKEN, "the test"), REPO, files, private, said.append, hub.slept.append)
    return sent, " | ".join(said)


def held(hub):
    """The files of the repository without git's own."""
    return {name: data for name, data in hub.repositories[REPO].files.items() if name != ".gitattributes"}


def test_a_run_is_published_file_by_file_in_one_commit(copied, hub, on_hybrid):
    said = []
    published = publish(*copied, REPO, say=said.append)
    repository = hub.repositories[REPO]
    assert sorted(held(hub)) == sorted(published.sent) == LISTED and len(repository.commits) == 2
    assert {path.name: path.read_bytes() for path in published.files} == held(hub)
    assert sorted(path.name for path in published.folder.iterdir()) == LISTED
    assert published.address == f"{hub.url}/{REPO}" and not repository.private
    assert hub.tokens == {f"Bearer {TOKEN}"} and TOKEN not in "".join(said)
    assert publish(*copied, REPO, say=said.append).sent == [] and len(repository.commits) == 2
    assert "has all 8 files already" in said[-1]


@pytest.mark.parametrize("seen", ["is_terminal", "is_jupyter", None])
def test_the_librarys_bars_are_drawn_for_people_and_not_into_a_log(hub, files, capsys, monkeypatch, seen):
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    enable_progress_bars()
    if seen:  # the first is a property
        monkeypatch.setattr(type(console.err) if seen == "is_terminal" else console.out, seen, True)
    assert send(hub, files)[0]
    assert bool(capsys.readouterr().err) is bool(seen)
    assert not are_progress_bars_disabled()


def test_a_dry_run_builds_the_folder_and_asks_nobody(copied, hub):
    published = publish(*copied, REPO, dry_run=True)
    assert sorted(path.name for path in published.files) == LISTED and hub.calls == []
    assert published.address == "" and published.sent == []


def test_own_words_are_shown_on_one_line_each(tmp_path):
    words = {"data.system_prompt": "You\n\x1b[31m are\r\n" + "x" * 300, "rewards": "\u202e" * 200}
    lines = Published(tmp_path, words, [], "", []).describe_own_words()
    assert lines == [
        "data.system_prompt: You \\x1b[31m are " + "x" * 186 + "... (315 characters)",
        "rewards: " + r"\u202e" * 200,
    ]


def test_only_what_has_changed_is_sent_and_other_files_stay(hub, files):
    mine = {".gitattributes": b"", "notes.md": b"mine", "run.json": b"{}", "README.md": b"of ada"}
    hub.repositories[REPO] = Repository(commits=[mine])
    sent, said = send(hub, files)
    assert sent == ["README.md", "adapter_model.safetensors"] and "also holds notes.md" in said
    assert f"{REPO} has another README.md, which will be replaced" in said
    assert held(hub) == FILES | {"notes.md": b"mine"}
    files[0].write_text("another card")
    assert send(hub, files)[0] == ["README.md"] and len(hub.repositories[REPO].commits) == 3


def test_a_large_file_goes_in_parts(hub, files):
    hub.part = 1000
    send(hub, files)
    assert held(hub) == FILES and sum("/storage" in call for call in hub.calls) == 4  # three parts, and their end


# What happens at a call, and the sentence that comes; after it the same call ends well.
FAULTS = [
    ("create", [401], PermissionError, "does not accept the token from the test (401"),
    ("create", [403], PermissionError, "does not let this account write ada/sums (403"),
    ("GET /api/models", [401], PermissionError, "does not accept the token"),
    ("create", [404], RuntimeError, "The Hub refused ada/sums (404"),
    ("commit", [403], PermissionError, "Correct USER"),
    ("commit", [413], RuntimeError, "The Hub refused ada/sums (413"),
    ("commit", [500] * 4, ConnectionError, "gave no answer about ada/sums (500"),
    ("commit", ["cut"] * 4, ConnectionError, "is not sent twice"),
    ("GET /api/models", ["cut"] * 4, ConnectionError, "Check the network"),
    ("commit", [409] * 4, RuntimeError, "was changed on the Hub while it was written"),
    ("preupload", [503] * 24, ConnectionError, "gave no answer"),
    ("PUT /storage", [500] * 24, ConnectionError, "gave no answer"),
    ("info/lfs", ["cut"] * 24, ConnectionError, "gave no answer"),
]


@pytest.mark.parametrize(("call", "actions", "kind", "words"), FAULTS, ids=lambda part: str(part)[:24])
def test_what_fails_is_one_sentence_and_the_next_call_ends_well(hub, files, call, actions, kind, words):
    hub.fail(call, *actions)
    with pytest.raises(kind) as raised:
        send(hub, files)
    assert words in str(raised.value) and TOKEN not in str(raised.value) and "\n" not in str(raised.value)
    assert REPO not in hub.repositories or held(hub) == {}
    hub.faults.clear()
    send(hub, files)
    assert held(hub) == FILES and len(hub.repositories[REPO].commits) == 2


# What happens once and is overcome within the same call.
PASSING = [
    ("create", [500]), ("create", ["lost"]), ("GET /api/models", [502]), ("preupload", [503]), ("preupload", ["cut"]),
    ("info/lfs", [429]), ("PUT /storage", ["cut", 500]), ("verify", [500]), ("commit", ["cut"]), ("commit", [500]),
    ("commit", [409, 412]), ("validate-yaml", [500]), ("validate-yaml", ["cut"]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "actions"), PASSING, ids=lambda part: str(part)[:24])
def test_what_passes_is_overcome_with_one_commit(hub, files, call, actions):
    hub.fail(call, *actions)
    assert send(hub, files)[0] == list(FILES)
    assert held(hub) == FILES and len(hub.repositories[REPO].commits) == 2 and hub.faults == []


def test_a_lost_answer_is_noticed_and_no_second_commit_is_made(hub, files):
    hub.fail("commit", "lost")
    sent, said = send(hub, files)
    assert sent == list(FILES) and "the commit was made" in said and len(hub.repositories[REPO].commits) == 2


def test_a_commit_of_somebody_else_in_between_stays(hub, files):
    hub.repositories[REPO] = Repository()
    hub.fail("/commit/", lambda: hub.repositories[REPO].commits.append({"notes.md": b"mine"}))
    send(hub, files)
    assert held(hub) == FILES | {"notes.md": b"mine"} and sum("/commit/" in call for call in hub.calls) == 2


def test_too_many_calls_are_waited_for_as_long_as_the_hub_asks(hub, files):
    hub.fail("commit", 429, Retry_After="7")
    send(hub, files)
    assert 7.0 in hub.slept and held(hub) == FILES
    files[0].write_text("another card")
    hub.fail("commit", 429, Retry_After="3600")
    with pytest.raises(RuntimeError, match="too many calls .* Call again in 3600 s"):
        send(hub, files)
    assert 3600.0 not in hub.slept


def test_a_private_repository_is_private_and_a_public_one_is_refused(hub, files):
    assert "new, and private" in send(hub, files, private=True)[1] and hub.repositories[REPO].private
    hub.repositories[REPO] = Repository(private=False)
    with pytest.raises(ValueError, match="is public, and it was to be private; nothing was sent"):
        send(hub, files, private=True)
    assert len(hub.repositories[REPO].commits) == 1


def test_an_adapter_of_another_making_is_not_replaced(hub, files):
    others = {".gitattributes": b"", "adapter_model.safetensors": b"a month of work", "README.md": b"of ada"}
    hub.repositories[REPO] = Repository(commits=[others])
    with pytest.raises(ValueError, match="holds an adapter_model.safetensors that the kit did not publish"):
        send(hub, files)
    assert hub.repositories[REPO].commits == [others] and not any("preupload" in call for call in hub.calls)
    hub.repositories[REPO].commits.append(others | {"adapter_model.safetensors": FILES["adapter_model.safetensors"]})
    assert send(hub, files)[0] == ["README.md", "run.json"]  # the same adapter, sent by hand


def test_a_repository_that_was_renamed_is_named_and_nothing_is_sent(hub, files):
    hub.repositories["ada/totals"], hub.renamed[REPO] = Repository(), "ada/totals"
    with pytest.raises(ValueError, match="ada/sums is called ada/totals on the Hub now, .* Write --to ada/totals"):
        send(hub, files)
    assert len(hub.repositories["ada/totals"].commits) == 1 and REPO not in hub.repositories


def test_a_base_that_was_renamed_is_found(hub):
    hub.repositories["org/new"], hub.renamed[HYBRID] = hub.repositories.pop(HYBRID), "org/new"
    assert HubClient(TOKEN, "the test").has_model(HYBRID)


@pytest.mark.slow
def test_a_run_that_was_killed_midway_is_published_by_the_same_call(hub, files, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom huggingface_hub import constants\n"
        "constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True\n"
        "from grpo_kit.publishing.hub_client import HubClient\nfrom grpo_kit.publishing.publish import send_files\n"
        f"send_files(HubClient({TOKEN!r}, 'x'), {REPO!r}, [Path(name) for name in sys.argv[1:]], False)\n"
    )
    for number, call in enumerate(("PUT /storage", "/commit/")):
        hub.repositories.pop(REPO, None)
        hub.objects.clear()
        hub.held.clear()
        hub.release.clear()
        hub.fail(call, "hold")
        child = processes.start(["-c", code, *map(str, files)], env=dict(os.environ))
        assert hub.held.wait(60)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert held(hub) == {}
        if number == 0:  # a commit that has arrived is carried out; an upload that has not, is not
            hub.faults.clear()
        hub.release.set()
        send(hub, files)
        assert held(hub) == FILES and len(hub.repositories[REPO].commits) == 2


def test_a_commit_of_the_same_files_that_arrives_meanwhile_is_not_made_twice(hub, files):
    """As that of a process that was killed: the library sees it before it commits, and makes none."""
    hub.fail("/preupload/", lambda: hub.repositories[REPO].commits.append(dict(FILES)))
    send(hub, files)
    assert held(hub) == FILES and len(hub.repositories[REPO].commits) == 2


# USER/REPO that is none
@pytest.mark.parametrize(
    "to", ["ada", "ada/", "/sums", "a/b/c", "ada/su--ms", "ada/..", "ada/sums.git", "ada/ü", "-a/b", ""]
)
def test_a_malformed_repository_is_refused_before_anything(copied, hub, to):
    with pytest.raises(ValueError, match="a repository on the Hub is USER/REPO"):
        publish(*copied, to)
    assert hub.calls == []


def test_the_embedded_policy_is_refused_unless_nothing_is_sent(copied, hub):
    with pytest.raises(ValueError, match="is embedded in grpo-kit; the Hub does not have it"):
        publish(*copied, REPO)
    assert hub.calls == []


def test_a_base_that_the_hub_does_not_have_is_refused_before_a_repository_is_made(copied, hub, on_hybrid):
    del hub.repositories[HYBRID]
    with pytest.raises(ValueError, match="The Hub has no model 'org/hybrid'"):
        publish(*copied, REPO)
    assert hub.repositories == {}


def test_without_a_token_or_offline_nothing_is_asked(copied, hub, on_hybrid, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(hub_client, "get_token", lambda: None)
    with pytest.raises(PermissionError, match="There is no token of Hugging Face"):
        publish(*copied, REPO)
    monkeypatch.setattr(hub_client, "get_token", lambda: "hf_with a space")
    with pytest.raises(ValueError, match="Copy the token again"):
        publish(*copied, REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        publish(*copied, REPO)
    assert hub.calls == []


def test_a_run_that_is_not_trained_is_refused(copied, tmp_path):
    config, _ = copied
    with pytest.raises(FileNotFoundError, match="has no finished stage 'train'"):
        publish(config, Run(tmp_path, "empty"), REPO, dry_run=True)
    with pytest.raises(TypeError, match="the id of a repository"):
        publish(*copied, 5, dry_run=True)
    with pytest.raises(TypeError):
        publish(replace(config), "small", REPO)
