"""Which files of a base go with a merged model: by name, whatever else lies in the folder."""

import json
import shutil

import pytest

from grpo_kit.handoff.companions import list_companions, read_companions
from grpo_kit.nemotron import tiny

KEPT = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(tiny.FOLDER, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_only_files_that_belong_to_the_model_are_listed(base):
    others = (
        ".env", "notes.txt", "training_args.pkl", "pytorch_model.bin", "README.md", ".gitattributes", "a.py", "x.json",
        "model.safetensors.index.json", "adapter_config.json", "LICENSE-KEY", "licenses.sqlite", "config.json.bak",
        "tokenizer.json~", "trainer_state.json", "modeling_other.py", "chat_template.jinja.swp", "id_rsa",
    )  # fmt: skip
    licences = ("LICENSE", "LICENCE.txt", "license.md", "NOTICE", "COPYING.txt")
    for name in (*others, *licences, "merges.txt", "special_tokens_map.json", "tokenizer.model"):
        (base / name).write_text("{}")
    (base / "added_tokens.json").mkdir()
    names = {path.name for path in list_companions(base)}
    assert names == {*KEPT, *licences, "merges.txt", "special_tokens_map.json", "tokenizer.model"}
    assert read_companions(base).keys() == names


def test_the_code_that_the_configurations_name_goes_along(base):
    for name in ("configuration_mine", "modeling_mine", "tokenization_mine", "evil", "elsewhere"):
        (base / f"{name}.py").write_text("import os\n")
    change(base / "config.json", auto_map={
        "AutoConfig": "configuration_mine.Mine", "AutoModel": "modeling_mine.Mine", "A": "org/repo--elsewhere.Mine",
        "B": "../evil.Mine", "C": 7, "D": None, "E": [],
    })  # fmt: skip
    change(base / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_mine.Fast"]})
    names = {path.name for path in list_companions(base)}
    assert names == {*KEPT, "configuration_mine.py", "modeling_mine.py", "tokenization_mine.py"}


@pytest.mark.parametrize("value", ["evil", 3, None, ["evil.A"]])
def test_a_map_of_another_form_names_nothing(base, value):
    (base / "evil.py").write_text("")
    change(base / "config.json", auto_map=value)
    assert {path.name for path in list_companions(base)} == KEPT


def test_fields_about_a_machine_are_left_out_and_other_files_stay_as_they_are(base):
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    assert {name for name, content in read_companions(base).items() if content != before[name]} == {"config.json"}
    change(base / "config.json", _name_or_path="/home/ada/base", torch_dtype="float16")
    change(base / "tokenizer_config.json", name_or_path="/home/ada/base", is_local=True, local_files_only=True, x="ö")
    contents = read_companions(base)
    config, tokenizer = (json.loads(contents[name]) for name in ("config.json", "tokenizer_config.json"))
    assert "/home/ada" not in b"".join(contents.values()).decode()
    assert config["torch_dtype"] == "bfloat16" and config["hidden_size"] == 128 and tokenizer["x"] == "ö"
    assert not {"_name_or_path", "name_or_path", "is_local", "local_files_only"} & {*config, *tokenizer}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_configuration_is_named(base, name, text):
    (base / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"{name} is not a JSON object; it is damaged"):
        read_companions(base)
