"""Secrets and places of this machine are found in any file, and never shown."""

import pytest

from grpo_kit.nemotron import tiny
from grpo_kit.publishing.secret_scan import PIECE, refuse_secrets

# Each is made up here; pieces are joined, so that no scanner takes this file for a leak.
SECRETS = [
    "hf_" + "aB3" * 12, "hf_oauth_" + "x1" * 20, "KGAT_" + "0a" * 16, '{"username":"ada","key":"' + "0a" * 16 + '"}',
    "KAGGLE_KEY=" + "0a" * 16, "wandb_v1_" + "Ab" * 20, "wandb login " + "0a" * 20, "AKIA" + "A1" * 8,
    "aws_secret_access_key = " + "aB/+" * 10, "ghp_" + "aB3" * 12, "github_pat_" + "aB_" * 12, "AIza" + "aB3-x" * 7,
    "sk-proj-" + "aB3-" * 10, "xoxb-" + "1234-" * 6, "-----BEGIN RSA PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----",
    "secret_hf_" + "aB3" * 12, "tokenhf_" + "aB3" * 12, "my_sk-proj-" + "aB3-" * 10, "x_AKIA" + "A1" * 8 + "_old",
    "my_ghp_" + "aB3" * 12, "_AIza" + "aB3-x" * 7, "KAGGLE_KEY " + "0a" * 16,
    "nvapi-" + "aB3_-" * 12, "key_nvapi-" + "aB3" * 20, "glpat-" + "aB3" * 8,
    "wandb:\n" + "0a" * 20, "wandb:\n    api_key: " + "0a" * 20, '"wandb_api_key": "' + "0a" * 20 + '"',
    "eyJ" + "hbGci0" * 4 + ".eyJ" + "zdWIi0" * 4 + "." + "aB3_-" * 6,
    "postgres://ada:" + "s3cret@db", "https://ada%40x.org:" + "p!w-d~1@10.0.0.1/x", "redis://u:" + "abc@[::1]:6379",
    "password=" + "hunter2hunter", "DB_PASSWORD: '" + "tr0ub4dor&3" + "'", '"passwd": "' + "a1b2c3d4" + '"',
    "machine x login ada password " + "corr3ct-horse", "Password:\n  " + "correct.h0rse",
]  # fmt: skip
HARMLESS = [
    "hf_hub_download", "sha256 " + "0a" * 32, "commit " + "0a" * 20, "the key is 42", "sk-learn", "AKIA", "wandb",
    '{"key": "value"}', "0a" * 16, "risk-adjusted-return-on-capital-over-some-time", "task-" + "a-b-" * 10,
    '{"password": 77345, "Ġpassword":131071, "passwords": 12345678}', "password=None", "password=getpass.getpass()",
    "password=read_password1(path)", "Her password has 8 digits.", "password: str, user1: str", "nvapi-",
    "https://huggingface.co/org/x", "http://127.0.0.1:8080/v1", "a://b:c d@e", "12:30 ada@example.org", "eyJhbGci",
    "hf_" + "a_" * 30,
    '"report_to": ["wandb"],\n  "revision": "' + "0a" * 20 + '"', '"wandb": "0.20.1",\n  "commit": "' + "0a" * 20 + '"',
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_wherever_it_stands_and_is_not_shown(secret, tmp_path):
    path = tmp_path / "file.bin"
    for before in (b"", b"\x00text ", b" " * (PIECE - 10)):  # the last one lies across two pieces
        path.write_bytes(before + secret.encode() + b" rest")
        with pytest.raises(ValueError, match="would become public") as raised:
            refuse_secrets([path], environ={})
        assert secret not in str(raised.value) and str(raised.value).startswith("file.bin holds")


def test_harmless_texts_and_the_kits_tokenizers_pass(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(HARMLESS))
    refuse_secrets([path, *(folder / "tokenizer.json" for folder in tiny.FOLDERS.values())], environ={})


def test_values_of_the_environment_and_places_are_found(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("see /home/ada/runs, opensesame-1234, short, /etc/pki, /content")
    for environ in ({"MY_API_KEY": "opensesame-1234"}, {"SERVICE_TOKEN": "opensesame-1234"}):
        with pytest.raises(ValueError, match="the value of the environment variable"):
            refuse_secrets([path], environ=environ)
    refuse_secrets([path], environ={"EDITOR": "opensesame-1234", "X_TOKEN": "short", "KEY_FILE_TOKEN": str(path)})
    path.write_text(f"see {path} and /aB3dE5fG7hI9jK1lM3")
    refuse_secrets([path], environ={"KEY_FILE_TOKEN": str(path)})
    with pytest.raises(ValueError, match="the value of the environment variable"):
        refuse_secrets([path], environ={"AWS_SECRET_ACCESS_KEY": "/aB3dE5fG7hI9jK1lM3"})  # base64, and no path
    path.write_text("see /home/ada/runs, opensesame-1234, short, /etc/pki, /content")
    with pytest.raises(ValueError, match="the path of a folder of this machine"):
        refuse_secrets([path], ["/home/ada"], environ={})
    refuse_secrets([path], ["/", "/etc", "/content"], environ={})  # /content: Colab, and a word of vocabularies


def test_the_setting_that_holds_a_secret_is_named_before_any_file(tmp_path):
    path, secret = tmp_path / "README.md", "hf_" + "aB3" * 12
    path.write_text(secret)
    words = {"data.prompt_suffix": "none", "data.system_prompt": f"My token is {secret}."}
    with pytest.raises(ValueError, match="^data.system_prompt holds a token of Hugging Face") as raised:
        refuse_secrets([path], environ={}, words=words)
    assert secret not in str(raised.value)
    with pytest.raises(ValueError, match="^environments holds the path of a folder"):
        refuse_secrets([], ["/home/ada"], environ={}, words={"environments": "/home/ada \ud800"})
    refuse_secrets([], environ={}, words={"data.prompt_suffix": "none"})
