"""Hub sets: opened once, streamed when large, and named when the Hub or the connection fails."""

import datasets
import datasets.exceptions
import pytest

from grpo_kit import config
from grpo_kit.data import hub, recipes, sources
from tests.helpers.source_rows import read_rows


def test_a_machine_without_a_network_does_not_wait_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FileNotFoundError, match="did not give it .*refused"):
        list(sources.read_source(sources.locate_source("nobody/nothing", config.Data()), config.Data(), 0))


def test_a_set_on_the_hub_is_read_by_datasets_and_streamed_when_large(monkeypatch):
    requests = []

    def load(name, subset, split, streaming):
        requests.append((name, subset, split, streaming))
        return iter([{"question": "p", "problem": "p", "answer": "#### 3", "solution": r"\boxed{3}"}] * 3)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    nowhere = {"environ": {}, "filesystem": sources.Path("/nowhere")}
    assert read_rows("gsm8k", **nowhere) == [("p", "3", "")] * 3
    assert read_rows("numina_math_cot", config.Data(limit=2), **nowhere) == [("p", "3", "")] * 2
    assert read_rows("me/mine", config.Data(subset="s", split="dev"), **nowhere) == [("p", "3", "")] * 3
    assert requests == [
        ("openai/gsm8k", "main", "train", False),
        ("AI-MO/NuminaMath-CoT", None, "train", True),
        ("me/mine", "s", "dev", False),
    ]


def test_an_interrupted_stream_is_not_reported_as_a_missing_data_set(monkeypatch):
    def rows():
        yield {"question": "p", "answer": "#### 3"}
        raise TimeoutError("read timed out")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ConnectionError, match="connection to openai/gsm8k broke after row 1 .*Repeat the command"):
        read_rows("gsm8k", environ={}, filesystem=sources.Path("/nowhere"))


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A folder that the library `datasets` reads as if it were a set on the Hub; it raises its own errors there."""
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    return folder


def read_folder(folder, subset=None, split="train", limit=None):
    recipe = recipes.Recipe("", "", "", hub=str(folder), subset=subset, split=split)
    return [row for _, row in hub.open_hub_set(recipe, limit).read_rows(None)]


def write_configurations(folder, names):
    lines = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n{lines}---\n")
    for name in names:
        (folder / f"{name}.jsonl").write_text('{"p": 1}\n')


@pytest.mark.parametrize("limit", [None, 5])
def test_a_set_with_several_configurations_lists_them(hub_folder, limit):
    write_configurations(hub_folder, ["main", "socratic"])
    assert read_folder(hub_folder, "main", limit=limit) == [{"p": 1}]
    with pytest.raises(ValueError, match="has several configurations: main, socratic. Set data.subset to one of them"):
        read_folder(hub_folder, limit=limit)
    with pytest.raises(ValueError, match="data.subset is 'mian', and .* has the configurations main, socratic. Set"):
        read_folder(hub_folder, "mian", limit=limit)
    with pytest.raises(ValueError, match="data.split is 'dev', and .* has train. Set data.split to one of them"):
        read_folder(hub_folder, "main", "dev", limit=limit)


def test_of_many_configurations_twenty_are_listed(hub_folder):
    write_configurations(hub_folder, [f"c{i:02}" for i in range(23)])
    with pytest.raises(ValueError, match="c18, c19 and 3 more. Set data.subset"):
        read_folder(hub_folder)


def test_a_set_that_needs_a_script_is_named_and_the_script_is_not_run(hub_folder):
    (hub_folder / "set.py").write_text("raise SystemExit('run')")
    with pytest.raises(
        ValueError, match="is made by the script set.py, .* --revision refs/convert/parquet .*data.source"
    ):
        read_folder(hub_folder)


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.jsonl", b'{"p": 1}\n{"p": \n', "JSON parse error"),
        ("train.parquet", b"PAR1 not really", "Parquet magic bytes not found"),
    ],
)
def test_a_set_that_cannot_be_generated_gives_the_reason_in_one_sentence(hub_folder, name, content, reason, limit):
    (hub_folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"set cannot be read .*{reason}.*Download it with `hf download") as error:
        read_folder(hub_folder, limit=limit)
    assert "\n" not in str(error.value)


def test_rows_with_other_columns_give_the_reason(hub_folder):
    (hub_folder / "train-0.jsonl").write_text('{"p": 1}\n')
    (hub_folder / "train-1.jsonl").write_text('{"q": "x"}\n')
    with pytest.raises(ValueError, match="set cannot be read .*(column|cast)"):
        read_folder(hub_folder)


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'me/mine' is a gated dataset on the Hub."),
        datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in me/mine"),
    ],
)
def test_a_set_that_the_hub_does_not_give_names_the_token(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(FileNotFoundError, match="'me/mine' has no file .*did not give it .*HF_TOKEN"):
        read_rows("me/mine")


def test_an_error_while_rows_are_streamed_is_a_sentence(monkeypatch):
    def rows():
        yield {"question": "p", "answer": "#### 3"}
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from ImportError("install torchcodec")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    monkeypatch.setattr(hub, "check_hub_reachable", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ValueError, match=r"me/mine cannot be read \(install torchcodec\). Download it"):
        read_rows("me/mine", config.Data(limit=3))
