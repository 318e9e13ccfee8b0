"""The exported folders, file by file: whole or not there, the same when written again, no path in them."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_kit.config import load_config
from grpo_kit.handoff import merging
from grpo_kit.nemotron import base_models, tiny
from grpo_kit.publishing.llama_cpp import export as exporting
from grpo_kit.publishing.llama_cpp import gguf_lora
from grpo_kit.runs.run import Run
from grpo_kit.submission.package import pack_folders
from tests.publishing.llama_cpp.test_gguf_lora import MODULES, make_adapter


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def bytes_in(folder):
    return {name: (folder / name).read_bytes() for name in names_in(folder) if (folder / name).is_file()}


def assert_sums(folder):
    """SHA256SUMS names every other file of the folder, with its sha256."""
    files = bytes_in(folder)
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in files if name != "SHA256SUMS"]
    assert sorted((folder / "SHA256SUMS").read_text().splitlines()) == sorted(lines)


@pytest.fixture
def foreign(tmp_path):
    """A function that plans the export of a random adapter from elsewhere to `tmp_path/out`."""
    adapter = make_adapter(tmp_path / "theirs", {"lm_head": MODULES["lm_head"]})

    def plan(to="gguf-lora", folder=adapter, **options):
        return exporting.plan_export(None, to, folder, out=tmp_path / "out", **options)

    return plan


def test_a_run_becomes_four_files_that_name_no_place_of_this_machine(trained, tmp_path):
    chosen, run = trained
    planned = exporting.plan_export(run, "gguf-lora", out=tmp_path / "out")
    assert exporting.write_export(planned) and names_in(tmp_path) == [
        "out", "out/Modelfile", "out/README.md", "out/SHA256SUMS", "out/adapter.gguf",
    ]  # fmt: skip
    files = bytes_in(tmp_path / "out")
    digest = hashlib.sha256(files["adapter.gguf"]).hexdigest()
    assert_sums(tmp_path / "out")
    readme = files["README.md"].decode()
    after = json.loads((run.evaluation / "after.json").read_text())
    assert digest in readme and "trained with GRPO" in readme and "## Measured over float32 only" in readme
    figures = f"{after['pass@1']:.3f} | {after['ci95'][0]:.3f} to {after['ci95'][1]:.3f} | 60 |"
    assert f"| after GRPO | float32 | open thought | 1 | {figures}" in readme
    for text in files.values():
        assert str(tmp_path).encode() not in text and str(run.root).encode() not in text
    reader = gguf.GGUFReader(tmp_path / "out/adapter.gguf")
    assert reader.fields["general.name"].contents() == "small"
    assert reader.fields["adapter.lora.alpha"].contents() == chosen.lora.lora_alpha
    exporting.write_export(planned)
    assert bytes_in(tmp_path / "out") == files
    assert planned.describe() == [
        f"{tmp_path}/out/adapter.gguf: 112.8 KiB, 12 tensors in float32, rank 16, alpha 32, for nemotron_h_moe",
        *(f"{tmp_path}/out/{name}" for name in ("Modelfile", "README.md", "SHA256SUMS")),
        planned.describe()[-1],
    ]


def test_a_run_s_export_lies_in_the_run_by_default(trained):
    chosen, run = trained
    assert exporting.plan_export(run, "gguf-lora").out == run.path / "export/gguf-lora"
    assert not (run.path / "export").exists()


def test_an_adapter_from_elsewhere_is_not_said_to_be_measured(foreign, tmp_path):
    planned = foreign()
    assert not (tmp_path / "out").exists()
    exporting.write_export(planned)
    readme, modelfile = ((tmp_path / "out" / name).read_text() for name in ("README.md", "Modelfile"))
    assert "## Not measured" in readme and "Measured over" not in readme and "trained with" not in readme
    assert "temperature" not in modelfile and "--temp" not in readme
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("to", "alone"), [("gguf-lora", "notes.txt"), ("merged", "adapter.gguf")])
def test_a_folder_with_something_else_is_left_alone(foreign, tmp_path, to, alone):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / alone).write_text("mine")
    with pytest.raises(FileExistsError, match=f"out holds {alone}, which an export does not write"):
        foreign(to)
    assert names_in(tmp_path / "out") == [alone]


def test_an_error_midway_leaves_the_earlier_export(foreign, tmp_path, monkeypatch):
    exporting.write_export(foreign())
    before = bytes_in(tmp_path / "out")
    zeros = make_adapter(tmp_path / "zeros", {"lm_head": MODULES["lm_head"]}, spread=0.0)
    with pytest.raises(ValueError, match="Every update of the adapter is zero"):
        exporting.write_export(foreign(folder=zeros))
    assert bytes_in(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "gguf"}, ValueError, "--to is 'gguf'; it must be one of gguf-lora, merged"),
        ({"to": "merged", "dtype": "float16"}, ValueError, "--dtype is float16, and a merged model is always bf16"),
        ({"dtype": "int8"}, ValueError, "--dtype is 'int8'; it must be one of float32, float16"),
        ({"base": "org/unknown"}, FileNotFoundError, "'org/unknown' is not a known base model"),
        ({"base": base_models.PUBLISHED}, ValueError, r"on lm_head, which is \(131072, 2688\) in this base"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(foreign, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        foreign(**options)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_names_no_known_base_is_refused(foreign, tmp_path):
    folder = make_adapter(tmp_path / "b", {"lm_head": MODULES["lm_head"]}, base="meta-llama/Llama-3.1-8B")
    with pytest.raises(FileNotFoundError, match="'meta-llama/Llama-3.1-8B' is not a known base model"):
        foreign(folder=folder)


def test_an_adapter_from_elsewhere_needs_a_place(tmp_path):
    with pytest.raises(ValueError, match="has no place in a run. Name one with --out."):
        exporting.plan_export(None, "gguf-lora", tmp_path)


def test_what_float16_loses_stands_in_the_readme(foreign, tmp_path):
    assert exporting.write_export(foreign()) and "Rounding" not in (tmp_path / "out/README.md").read_text()
    exporting.write_export(foreign(dtype="float16"))
    last = (tmp_path / "out/README.md").read_text().splitlines()[-1]
    assert last.startswith("- Rounding to float16 changes the adapter's update by 0.0") and "output.weight" in last


def test_the_disk_that_a_merged_30b_needs_is_said_without_its_weights_and_refused(foreign, tmp_path, monkeypatch):
    modules = base_models.lora_modules(base_models.PUBLISHED)
    folder = make_adapter(tmp_path / "large", {"lm_head": modules["lm_head"]}, base=base_models.PUBLISHED, rank=1, r=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100 << 30, 50 << 30, 50 << 30))
    planned = foreign("merged", folder)
    assert planned.describe()[0].endswith("model: 58.8 GiB in bf16, from " + base_models.PUBLISHED)
    assert planned.describe()[-1] == "needs 59.1 GiB of the disk, which has 50.0 GiB free"
    with pytest.raises(OSError, match=r"needs 59\.1 GiB, and its disk has 50\.0 GiB free; nothing was written"):
        exporting.write_export(planned)
    assert not (tmp_path / "out").exists()


def test_the_merged_model_is_the_hand_overs(foreign, tmp_path):
    planned, shards = foreign("merged"), []
    assert exporting.write_export(planned, lambda *step: shards.append(step)) == list(exporting.FORMS["merged"])
    assert shards == [(1, 1, "model.safetensors")]
    merging.merge_adapter(tiny.FOLDER, tmp_path / "theirs", tmp_path / "again")
    assert bytes_in(tmp_path / "out/model") == bytes_in(tmp_path / "again")
    size = sum(tensor.nbytes for tensor in load_file(tmp_path / "out/model/model.safetensors").values())
    assert 0.95 < planned.nbytes / size <= 1  # by matrices and embeddings alone
    readme = (tmp_path / "out/README.md").read_text()
    assert "convert_hf_to_gguf.py model --outfile merged-bf16.gguf --outtype bf16\n" in readme
    assert (tmp_path / "out/Modelfile").read_text().startswith("FROM ./merged-Q4_K_M.gguf\nTEMPLATE ")
    assert_sums(tmp_path / "out")


@pytest.mark.parametrize("to", ["gguf-lora", "merged"])
def test_finite_halves_whose_update_is_infinite_are_refused_and_leave_nothing(foreign, tmp_path, to):
    folder = make_adapter(tmp_path / "large", {"lm_head": MODULES["lm_head"]})
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor * 1e19 for key, tensor in load_file(path).items()}, path)
    with pytest.raises(
        ValueError, match="The update of output.weight has a norm of|update takes lm_head.weight beyond"
    ):
        exporting.write_export(foreign(to, folder))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def merged(foreign, tmp_path, monkeypatch):
    """(a function that exports again and returns what was written, times that it merged) where a merged model lies."""
    exporting.write_export(foreign("merged"))
    merge, calls = merging.merge_adapter, []
    monkeypatch.setattr(merging, "merge_adapter", lambda *all: (calls.append(all), merge(*all))[1])
    return lambda **options: exporting.write_export(foreign("merged", **options)), calls


def test_a_model_is_not_merged_twice(merged, tmp_path):
    again, calls = merged
    before = bytes_in(tmp_path / "out")
    assert again() == [] and calls == [] and bytes_in(tmp_path / "out") == before
    other = make_adapter(tmp_path / "other", {"lm_head": MODULES["lm_head"]}, rank=2, r=2)
    assert again(folder=other) and len(calls) == 1 and bytes_in(tmp_path / "out") != before


def change_a_byte(model):
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CHANGES = [
    change_a_byte,
    lambda model: (model / "model.safetensors").unlink(),
    lambda model: (model / "config.json").write_text("{}"),
    lambda model: (model / "tokenizer.json").write_bytes(b""),
    lambda model: (model / "more.json").write_text("{}"),
    lambda model: shutil.rmtree(model),
    lambda model: (model.parent / "export.json").unlink(),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_model_that_is_not_as_it_was_written_is_merged_again(merged, tmp_path, number):
    again, calls = merged
    before = bytes_in(tmp_path / "out")
    CHANGES[number](tmp_path / "out" / "model")
    assert again() and len(calls) == 1 and bytes_in(tmp_path / "out") == before


def test_texts_that_were_changed_are_written_anew_without_merging(merged, tmp_path):
    again, calls = merged
    before = bytes_in(tmp_path / "out")
    (tmp_path / "out/README.md").write_text("mine")
    (tmp_path / "out/SHA256SUMS").unlink()
    assert again() == ["README.md", "SHA256SUMS"] and calls == [] and bytes_in(tmp_path / "out") == before


def test_a_base_whose_weights_were_written_since_is_another(merged, tmp_path, foreign):
    again, calls = merged
    base = tmp_path / "base"
    shutil.copytree(tiny.FOLDER, base)
    again(base=str(base))
    assert len(calls) == 1 and again(base=str(base)) == []
    change_a_byte(base)
    assert again(base=str(base)) and len(calls) == 2


def test_files_that_do_not_belong_to_the_base_are_not_passed_on(foreign, tmp_path):
    base = shutil.copytree(tiny.FOLDER, tmp_path / "base")
    for name in (".env", "notes.txt", "training_args.pkl"):
        (base / name).write_text("hf_" + "a" * 34)
    (base / "LICENSE").write_text("as it is")
    exporting.write_export(foreign("merged", base=str(base)))
    own = {path.name for path in tiny.FOLDER.iterdir()}
    assert {path.name for path in (tmp_path / "out/model").iterdir()} == own | {"LICENSE"}
    assert "notes" not in (tmp_path / "out/SHA256SUMS").read_text()


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "LICENSE"])
def test_a_secret_in_a_file_of_the_base_is_not_passed_on(merged, tmp_path, name):
    again, calls = merged
    base = shutil.copytree(tiny.FOLDER, tmp_path / "base")
    key = "AKIA" + "ABCDEFGHIJKLMNOP"
    (base / name).write_text(f'{{"key": "{key}"}}')
    with pytest.raises(ValueError, match=f"^{name} holds a key of Amazon"):
        again(base=str(base))
    assert calls == []


def test_a_secret_as_a_name_is_not_passed_on(foreign, tmp_path):
    folder = make_adapter(tmp_path / ("hf_" + "a" * 34), {"lm_head": MODULES["lm_head"]})
    with pytest.raises(ValueError, match="^The adapter's name holds a token of Hugging Face"):
        exporting.write_export(foreign(folder=folder))


def test_a_tokenizer_that_was_changed_since_is_merged_again(merged, tmp_path):
    again, calls = merged
    base = shutil.copytree(tiny.FOLDER, tmp_path / "base")
    again(base=str(base))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    assert again(base=str(base)) and len(calls) == 2
    assert (tmp_path / "out/model/chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("to", ["gguf-lora", "merged"])
def test_a_link_to_another_disk_is_followed(foreign, tmp_path, monkeypatch, to):
    """What is free is asked of the disk that is written to."""
    disk, asked = tmp_path / "disk" / "here", []
    disk.parent.mkdir()
    (tmp_path / "out").symlink_to(disk)
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (asked.append(Path(path)), usage(path))[1])
    for _ in range(2):
        exporting.write_export(foreign(to))
        assert (tmp_path / "out").is_symlink() and {path.name for path in disk.iterdir()} == {*exporting.FORMS[to]}
        assert [path.name for path in disk.parent.iterdir()] == ["here"]
    assert all(path.is_relative_to(disk.parent) for path in asked)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_link_to_a_folder_with_something_else_is_left_alone(foreign, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "out").symlink_to("mine")
    with pytest.raises(FileExistsError, match="mine holds notes.txt, which an export does not write"):
        foreign()


def test_a_measurement_since_then_reaches_the_readme_of_a_merged_model(trained, tmp_path, monkeypatch):
    run = Run(tmp_path / "runs", "small")
    shutil.copytree(trained[1].path, run.path)
    notes = run.notes.read_text()
    record = json.loads(notes)
    del record["stages"]["after"]
    run.notes.write_text(json.dumps(record))
    readme = run.path / "export/merged/README.md"
    assert exporting.write_export(exporting.plan_export(run, "merged"))
    assert "the one after GRPO, of which there is no accuracy" in readme.read_text()
    run.notes.write_text(notes)
    monkeypatch.setattr(merging, "merge_adapter", lambda *_: pytest.fail("merged again"))
    assert exporting.write_export(exporting.plan_export(run, "merged")) == ["README.md", "SHA256SUMS"]
    assert "| after GRPO | float32 |" in readme.read_text()
    assert_sums(run.path / "export/merged")


def test_a_secret_in_the_words_of_a_run_is_not_passed_on(trained, tmp_path):
    planned = exporting.plan_export(trained[1], "gguf-lora", out=tmp_path / "out")
    words = planned.training._replace(system="The key is hf_" + "a" * 34)
    with pytest.raises(ValueError, match="^data.system_prompt holds a token of Hugging Face"):
        exporting.write_export(planned._replace(training=words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", exporting.FORMS)
def test_a_secret_or_a_place_in_a_text_that_is_written_is_not_passed_on(trained, tmp_path, to):
    """Whatever led to it, as a remark may; where a setting led to it, that is named, and nothing is merged before."""
    planned = exporting.plan_export(trained[1], to, out=tmp_path / "out")
    for said, what in (
        ("read by glpat-" + "aB3" * 8, "a token of GitLab"),
        (f"read from {trained[1].root.absolute()}/x", "the path of a folder of this machine"),
    ):
        with pytest.raises(ValueError, match=f"^README.md holds {what}, and would become public"):
            exporting.write_export(planned._replace(notes=[said]))
        assert not (tmp_path / "out").exists()
    words = planned.training._replace(suffix=f" as in {trained[1].root.absolute()}")
    with pytest.raises(ValueError, match="^data.prompt_suffix holds the path of a folder of this machine"):
        exporting.write_export(planned._replace(training=words))
    with pytest.raises(ValueError, match="^policy.revision holds a token of Hugging Face"):
        exporting.write_export(planned._replace(base=planned.base._replace(revision="at_hf_" + "aB3" * 12)))


def test_the_words_of_a_run_reach_the_modelfile(trained, tmp_path):
    planned = exporting.plan_export(trained[1], "gguf-lora", out=tmp_path / "out")
    assert planned.notes == []  # the template was compared
    exporting.write_export(planned._replace(training=planned.training._replace(system="Be brief.", suffix="\nGo:")))
    lines = (tmp_path / "out/Modelfile").read_text().splitlines()
    assert 'SYSTEM """Be brief."""' in lines and f"PARAMETER num_ctx {40 + 2048 + 9 + 4}" in lines


def test_a_template_that_cannot_be_compared_is_said(trained, tmp_path, monkeypatch):
    from grpo_kit.policy import load

    def plan():
        return exporting.plan_export(trained[1], "gguf-lora", out=tmp_path / "out").notes

    monkeypatch.setattr(exporting, "is_template_of", lambda *_: False)
    assert plan() == [
        "The run's chat template writes another prompt than the Modelfile's TEMPLATE. Ask by llama-server --jinja."
    ]
    monkeypatch.setattr(load, "load_tokenizer", lambda policy: (_ for _ in ()).throw(FileNotFoundError("gone")))
    assert plan() == [
        "The Modelfile's prompt was not compared with the run's chat template, which is not on this machine."
    ]


def test_a_step_of_another_trainer_is_merged_too(foreign, tmp_path):
    make_adapter(tmp_path / "step/lora_adapter", {"lm_head": MODULES["lm_head"]})
    assert exporting.write_export(foreign("merged", tmp_path / "step"))
    assert (tmp_path / "out/README.md").read_text().startswith("# step: the merged model")


def test_a_submission_is_merged_too(trained, foreign, tmp_path):
    pack_folders([trained[1].adapter], "tiny", tmp_path / "s.zip")  # with the published names
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    exporting.write_export(foreign("merged", tmp_path / "unpacked", base="tiny"))
    merging.merge_adapter(tiny.FOLDER, trained[1].adapter, tmp_path / "again")
    one, other = (load_file(path / "model.safetensors") for path in (tmp_path / "out/model", tmp_path / "again"))
    for name in one.keys() | other.keys():
        torch.testing.assert_close(one[name].float(), other[name].float(), rtol=2**-7, atol=0)


def test_the_adapter_in_this_folder_has_the_folder_s_name(foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "theirs")
    assert foreign(folder=Path()).name == "theirs"


def test_a_base_in_a_folder_is_named_by_the_folder_alone(foreign, tmp_path):
    base = tmp_path / "home" / "mine"
    shutil.copytree(tiny.FOLDER, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    for to in ("gguf-lora", "merged"):
        exporting.write_export(foreign(to, base=str(base)))
        for name in ("README.md", "adapter.gguf", "export.json"):
            path = tmp_path / "out" / name
            if path.is_file() and name != "export.json":
                assert str(base).encode() not in path.read_bytes() and b"mine" in path.read_bytes()
        if to == "merged":
            assert "--outtype bf16 --no-mtp" in (tmp_path / "out/README.md").read_text()
        shutil.rmtree(tmp_path / "out")


def test_read_base_config_reads_what_lora_modules_reads():
    assert gguf_lora.read_base_config("tiny")["hidden_size"] == 128
    assert gguf_lora.read_base_config(base_models.NANO_4B)["hidden_size"] == 3136
    assert load_config(["tiny"]).policy.model == "tiny"
