"""Where runs and NF4 checkpoints lie on each kind of machine, and how mounted inputs are searched for them."""

import json

from grpo_kit.runs import places

COLAB, KAGGLE = {"COLAB_RELEASE_TAG": "x"}, {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}


def test_on_other_machines_runs_lie_in_the_working_folder(tmp_path):
    assert places.find_root({}, tmp_path).as_posix() == "runs"


def test_runs_lie_on_drive_when_colab_has_mounted_it(tmp_path):
    assert places.find_root({"COLAB_RELEASE_TAG": "x"}, tmp_path) == tmp_path / "content/grpo-kit/runs"
    (tmp_path / "content/drive/MyDrive").mkdir(parents=True)
    assert places.find_root({"COLAB_RELEASE_TAG": "x"}, tmp_path) == tmp_path / "content/drive/MyDrive/grpo-kit/runs"


def test_runs_lie_in_the_output_folder_on_kaggle(tmp_path):
    assert places.find_root({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, tmp_path) == tmp_path / "kaggle/working/runs"


def test_an_explicit_root_wins(tmp_path):
    assert places.find_root({"GRPO_KIT_ROOT": "/x", "KAGGLE_KERNEL_RUN_TYPE": "Batch"}, tmp_path).as_posix() == "/x"


def earlier_run(tmp_path, kernel, notes, steps=0):
    folder = tmp_path / "kaggle/input/notebooks/me" / kernel / "runs/r"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(notes)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n' * steps)


def finished_on(day):
    stage = {"finished": f"{day}T10:00:00.000+00:00", "seconds": 1, "settings": {}, "read": {}, "wrote": {}}
    return json.dumps({"stages": {"data": stage}})


def test_of_several_earlier_runs_the_one_that_came_furthest_is_copied(tmp_path):
    earlier_run(tmp_path, "z-older", finished_on("2026-11-07"), 90)
    earlier_run(tmp_path, "z-damaged", "{", 99)
    earlier_run(tmp_path, "b-newer", finished_on("2026-11-21"), 3)
    earlier_run(tmp_path, "a-newer-and-further", finished_on("2026-11-21"), 12)
    places.copy_earlier_run(tmp_path / "working/r", KAGGLE, tmp_path)
    assert len((tmp_path / "working/r/metrics.jsonl").read_text().splitlines()) == 12
    places.copy_earlier_run(tmp_path / "elsewhere/r", {}, tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_an_nf4_checkpoint_lies_on_the_machines_own_disk(tmp_path):
    (tmp_path / "content/drive/MyDrive").mkdir(parents=True)
    assert places.default_nf4_folder("a/b", COLAB, tmp_path) == tmp_path / "content/grpo-kit/nf4/a--b"
    assert places.default_nf4_folder("a/b", KAGGLE, tmp_path) == tmp_path / "kaggle/temp/nf4/a--b"
    assert places.default_nf4_folder("/m/a", {}, tmp_path).as_posix() == "nf4/m--a"


def test_only_kaggles_output_and_google_drive_outlive_a_session(tmp_path):
    assert places.kaggle_nf4_folder("a/b", KAGGLE, tmp_path) == tmp_path / "kaggle/working/nf4/a--b"
    assert places.kaggle_nf4_folder("a/b", COLAB, tmp_path) is None
    assert places.drive_nf4_folder("a/b", COLAB, tmp_path) is None  # not mounted
    (tmp_path / "content/drive/MyDrive").mkdir(parents=True)
    assert places.drive_nf4_folder("a/b", COLAB, tmp_path) == tmp_path / "content/drive/MyDrive/grpo-kit/nf4/a--b"
    assert places.drive_nf4_folder("a/b", KAGGLE, tmp_path) is None


def test_a_drive_that_does_not_answer_keeps_nothing(tmp_path, monkeypatch):
    def hang(path):
        raise TimeoutError(110, "no answer within 20 s")

    monkeypatch.setattr(places, "stat_in_time", hang)
    assert places.drive_nf4_folder("a/b", COLAB, tmp_path) is None


def test_shards_are_downloaded_outside_the_output_of_a_kernel(tmp_path):
    output = tmp_path / "kaggle/working/nf4/a--b"
    assert places.download_folder(output, KAGGLE, tmp_path) == tmp_path / "kaggle/temp/downloads/a--b"
    assert places.download_folder(output, COLAB, tmp_path) == output / ".download"


def find(tmp_path, environ=KAGGLE):
    return [
        path.relative_to(tmp_path / "kaggle/input").as_posix()
        for path in places.find_mounted_folders("nf4.json", environ, tmp_path)
    ]


def mount(tmp_path, *folders):
    for folder in folders:
        path = tmp_path / "kaggle/input" / folder
        path.mkdir(parents=True)
        (path / "nf4.json").write_text("{}")


def test_mounted_inputs_are_searched_by_breadth_and_only_on_kaggle(tmp_path):
    assert find(tmp_path) == []  # no inputs
    mount(tmp_path, "notebooks/ada/grpo-kit-01-setup/nf4/model", "datasets/ada/nano", "mine")
    assert find(tmp_path) == ["mine", "datasets/ada/nano", "notebooks/ada/grpo-kit-01-setup/nf4/model"]
    assert find(tmp_path, COLAB) == []


def test_the_search_ends_below_five_folders_and_does_not_look_into_what_it_found(tmp_path):
    mount(tmp_path, "a/b/c/d/e/f", "found", "found/inner")
    assert find(tmp_path) == ["found"]


def test_a_folder_of_a_million_files_is_not_listed_to_its_end(tmp_path, monkeypatch):
    mount(tmp_path, "z/model")
    pictures = tmp_path / "kaggle/input/pictures"
    pictures.mkdir()
    for number in range(50):
        (pictures / f"{number}.png").touch()
    listed = []
    scan = places.os.scandir

    class Counted:
        def __init__(self, path):
            self.entries = scan(path)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                listed.append(entry.name)
                yield entry

    monkeypatch.setattr(places.os, "scandir", Counted)
    monkeypatch.setattr(places, "MOST_ENTRIES", 10)
    assert find(tmp_path) == ["z/model"]
    assert len([name for name in listed if name.endswith(".png")]) == 10


def test_an_input_that_cannot_be_listed_is_skipped(tmp_path, monkeypatch):
    mount(tmp_path, "fine")
    (tmp_path / "kaggle/input/closed").mkdir()
    scan = places.os.scandir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(places.os, "scandir", refuse)
    assert find(tmp_path) == ["fine"]
