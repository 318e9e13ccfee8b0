"""The comparison with the scorer's engine, without vLLM: what it hands over and what it says about another version."""

import importlib.util
import json

import pytest

from tests.helpers import engine
from tests.helpers.settings import ROOT
from tests.helpers.submissions import config, write_zip


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("scorer_engine", ROOT / "benchmarks" / "scorer_engine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_base_that_vllm_gets_names_its_layers_as_the_published_model_does(script, tmp_path):
    script.write_base(tmp_path / "base")
    fields = json.loads((tmp_path / "base" / "config.json").read_text())
    assert (fields["hybrid_override_pattern"], fields["num_hidden_layers"]) == ("ME*E", 4)
    assert "layers_block_type" not in fields and fields["model_type"] == "nemotron_h"


@pytest.mark.parametrize(
    ("members", "folder"),
    [
        (["adapter_config.json"], "."),
        (["b/adapter_config.json", "a/x/adapter_config.json"], "a/x"),
        ([".hidden/adapter_config.json", "z/adapter_config.json"], "z"),
        ([".hidden/adapter_config.json"], None),
        (["Adapter_Config.json"], None),
    ],
)
def test_the_adapter_is_looked_for_as_the_scorer_does(script, tmp_path, members, folder):
    path = write_zip(tmp_path / "a.zip", {name: config() for name in members})
    expected = None if folder is None else tmp_path / "out" / folder
    assert script.unpack_like_scorer(path, tmp_path / "out") == expected


def test_another_version_is_compared_case_by_case(script):
    answers = json.loads(json.dumps(engine.recorded_answers()))
    assert script.compare_versions("9", answers)[1:] == []
    answers["rank 33"] = {"loaded": {}}
    answers["as packed"]["loaded"]["backbone.layers.1.mixer.shared_experts.up_proj"] = 2.0
    answers["rsLoRA"]["loaded"]["backbone.layers.2.mixer.q_proj"] = 9.0
    answers["two targets"] = {"refused": "ValueError"}
    assert script.compare_versions("9", answers) == [
        {"case": "LoRA on shared experts", "0.17.1": "applied in 0 cases", "9": "applied in 1 cases"},
        {"case": "rank 33", "0.17.1": "refuses", "9": "loads"},
        {"case": "rsLoRA", "0.17.1": "scales 1 parts by 4.0", "9": "scales 1 parts by 9.0"},
        {"case": "two targets", "0.17.1": "loads", "9": "refuses"},
    ]


def test_without_vllm_it_says_how_to_install_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scorer_engine.py", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="bin/python does not exist. Add --install"):
        script.main()
