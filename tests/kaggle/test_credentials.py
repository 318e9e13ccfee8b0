"""Where credentials are searched, in which order, and that no output shows them."""

import json
import sys
import traceback
import types

import pytest

from grpo_kit.kaggle import credentials
from tests.helpers.fake_kaggle import BASIC, KEY, TOKEN, USER


@pytest.fixture(autouse=True)
def environ(monkeypatch, tmp_path):
    """Sets these variables only, with an empty home folder and neither Colab nor Kaggle."""
    for name in ("google.colab", "kaggle_secrets"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in (
        "KAGGLE_USERNAME",
        "KAGGLE_KEY",
        "KAGGLE_API_TOKEN",
        "KAGGLE_CONFIG_DIR",
        "XDG_CONFIG_HOME",
        "HF_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def write(home, name, text, mode=0o600):
    path = home / ".kaggle" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_without_credentials_the_error_names_every_place_searched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"KAGGLE_API_TOKEN.*access_token.*kaggle.json.*Colab.*Make a token"):
        credentials.find_credentials()


@pytest.mark.parametrize(
    ("values", "token", "username", "key"),
    [
        ({"KAGGLE_API_TOKEN": TOKEN}, TOKEN, "", ""),
        ({"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}, "", USER, KEY),
        ({"KAGGLE_API_TOKEN": TOKEN, "KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}, TOKEN, "", ""),  # as the client does
    ],
)
def test_the_environment_comes_first(tmp_path, environ, values, token, username, key):
    environ(**values)
    write(tmp_path, "kaggle.json", json.dumps({"username": "other", "key": "other"}))
    login = credentials.find_credentials()
    assert (login.token, login.username, login.key, login.warning) == (token, username, key, "")


def test_a_username_without_a_key_is_ignored(tmp_path, environ):
    write(tmp_path, "access_token", TOKEN + "\n")
    environ(KAGGLE_USERNAME=USER)
    assert credentials.find_credentials().source.endswith("access_token")


def test_the_environment_may_name_a_file(tmp_path, environ):
    (tmp_path / "t").write_text(f" {TOKEN}\n")
    environ(KAGGLE_API_TOKEN=str(tmp_path / "t"))
    assert credentials.find_credentials().token == TOKEN


@pytest.mark.parametrize("place", ["home", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"])
def test_kaggle_json_is_found_where_the_client_keeps_it(tmp_path, environ, place):
    path = write(tmp_path, "kaggle.json", json.dumps({"username": USER, "key": KEY}))
    if place != "home":
        moved = tmp_path / "elsewhere" / "kaggle" / "kaggle.json"
        moved.parent.mkdir(parents=True)
        path.rename(moved)
        environ(**{place: str(moved.parent if place == "KAGGLE_CONFIG_DIR" else moved.parent.parent)})
    login = credentials.find_credentials()
    assert (login.username, login.key) == (USER, KEY)


@pytest.mark.parametrize("name", ["kaggle.json", "access_token", "credentials.json"])
@pytest.mark.parametrize(
    ("mode", "warns"), [(0o600, False), (0o400, False), (0o644, True), (0o660, True), (0o604, True)]
)
def test_a_file_that_others_can_read_gives_a_warning(tmp_path, name, mode, warns):
    text = TOKEN if name == "access_token" else json.dumps({"username": USER, "key": KEY})
    path = write(tmp_path, name, text, mode)
    warning = credentials.find_credentials().warning
    assert (f"chmod 600 {path}" in warning) is warns and KEY not in warning and TOKEN not in warning


@pytest.mark.parametrize("text", ["", "{", "[]", '{"username": "ada"}', "null", KEY, f'{{"key": "{KEY}"'])
def test_an_invalid_kaggle_json_is_named_without_its_content(tmp_path, text):
    write(tmp_path, "kaggle.json", text)
    with pytest.raises(ValueError, match="kaggle.json is not") as caught:
        credentials.find_credentials()
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("bad", [f"{KEY}\nHost: evil", f"{KEY} x", f"{KEY}\r", "schlüssel"])
def test_a_secret_that_would_break_a_header_is_refused_without_showing_it(environ, bad):
    environ(KAGGLE_USERNAME=USER, KAGGLE_KEY=bad)
    with pytest.raises(ValueError, match="Copy them again") as caught:
        credentials.find_credentials()
    assert KEY not in str(caught.value)


def colab(values):
    class SecretNotFoundError(Exception):
        pass

    def get(name):
        if name not in values:
            raise SecretNotFoundError(f"Secret {name} does not exist.")
        return values[name]

    userdata = types.SimpleNamespace(get=get, SecretNotFoundError=SecretNotFoundError)
    return {"google": types.ModuleType("google"), "google.colab": types.SimpleNamespace(userdata=userdata)}


@pytest.mark.parametrize("values", [{"KAGGLE_API_TOKEN": TOKEN}, {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}])
def test_credentials_are_read_from_colabs_secrets(tmp_path, monkeypatch, values):
    for name, module in colab(values).items():
        monkeypatch.setitem(sys.modules, name, module)
    login = credentials.find_credentials()
    assert "Colab" in login.source and (login.token or login.key) in (TOKEN, KEY)


def test_colabs_secrets_are_read_only_when_nothing_else_is_set(environ, monkeypatch):
    environ(KAGGLE_API_TOKEN=TOKEN)
    for name, module in colab({}).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["google.colab"].userdata, "get", lambda name: pytest.fail("asked"))
    assert credentials.find_credentials().token == TOKEN


def test_credentials_are_read_from_kaggles_secrets(tmp_path, monkeypatch):
    class UserSecretsClient:
        def get_secret(self, name):
            if name == "KAGGLE_API_TOKEN":
                raise RuntimeError("No user secrets exist for kernel id 1 and label KAGGLE_API_TOKEN.")
            return {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY}[name]

    monkeypatch.setitem(sys.modules, "kaggle_secrets", types.SimpleNamespace(UserSecretsClient=UserSecretsClient))
    login = credentials.find_credentials()
    assert "Kaggle's secrets" in login.source and login.key == KEY


def test_neither_repr_nor_a_redacted_text_shows_a_secret():
    login = credentials.Credentials("somewhere", USER, KEY, TOKEN)
    output = repr(login) + str(login) + login.hide(f"key {KEY}, token {TOKEN}, header {BASIC}")
    assert KEY not in output and TOKEN not in output and BASIC.removeprefix("Basic ") not in output


@pytest.mark.parametrize(
    ("values", "modules", "source"),
    [
        ({}, {}, ""),
        ({"HF_TOKEN": TOKEN}, {}, "HF_TOKEN in the environment"),
        ({}, {"HF_TOKEN": TOKEN}, "HF_TOKEN in Colab's secrets"),
        ({}, {"KAGGLE_KEY": KEY}, ""),  # another secret
        ({"HF_TOKEN": TOKEN}, {"HF_TOKEN": "other"}, "HF_TOKEN in the environment"),
    ],
)
def test_the_hubs_token_is_found_and_set_in_the_environment(monkeypatch, values, modules, source):
    for name, module in colab(modules).items() if modules else ():
        monkeypatch.setitem(sys.modules, name, module)
    assert credentials.find_hub_token(values) == source
    assert values == ({"HF_TOKEN": TOKEN} if source else {})


def test_the_hubs_token_is_read_from_kaggles_secrets_unless_their_client_fails(monkeypatch):
    class Client:
        get_secret = {"HF_TOKEN": TOKEN}.__getitem__

    module = types.SimpleNamespace(UserSecretsClient=Client)
    monkeypatch.setitem(sys.modules, "kaggle_secrets", module)
    values = {}
    assert credentials.find_hub_token(values) == "HF_TOKEN in Kaggle's secrets" and values == {"HF_TOKEN": TOKEN}

    def none():
        raise RuntimeError("no token in the environment of this kernel")

    module.UserSecretsClient = none
    assert credentials.find_hub_token({}) == ""


def test_the_summary_names_the_source_but_not_the_secret(environ):
    environ(HF_TOKEN=TOKEN)
    assert credentials.describe_credentials() == (
        "Kaggle       none; only submitting from here needs them\nHugging Face HF_TOKEN in the environment"
    )
    environ(KAGGLE_API_TOKEN=TOKEN)
    assert credentials.describe_credentials().startswith("Kaggle       KAGGLE_API_TOKEN in the environment\n")
    assert TOKEN not in credentials.describe_credentials()
