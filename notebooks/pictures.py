"""Makes `notes/images/NN_name.png`, the picture at the top of each notebook, from what the notebook shows when it runs.

`python notebooks/gallery.py --pictures` calls it with the notebooks that it has executed.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image
from scipy.spatial import KDTree

WIDTH, COLORS = 860, 256  # pixels; with a palette a chart is a third as large, and a notebook carries its picture
# Which of the pictures under a notebook's cells is its main result. The quickstart shows its charts in a widget, and of
# the many charts of the three stages one each is shown.
MAIN = {"01_setup": -1, "02_data": -1, "03_training": 0, "04_submit": 0, "05_tuning": -1, "06_environments": 0}
PANELS = {
    "00_quickstart": ("tiny-quickstart", {"train": ("Reward", "Held-out accuracy")}),
    "08_stages": (
        "tiny-stages",
        {"sft": ("Loss of the texts",), "train": ("Reward",), "prefer": ("Rewards of pairs",)},
    ),
}


def write_pictures(notebooks: Mapping[str, nbformat.NotebookNode], runs: Path, target: Path) -> None:
    """Write the picture of each executed notebook.

    Args:
        notebooks: {name: executed notebook}.
        runs: the folder of their runs.
        target: the folder for the pictures.
    """
    for name, notebook in notebooks.items():
        data = draw_panels(runs, *PANELS[name]) if name in PANELS else pick_output(notebook, MAIN[name])
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        reduce_colors(picture).save(target / f"{name}.png", optimize=True)


def reduce_colors(picture: Image.Image) -> Image.Image:
    """An RGB picture in COLORS colours: half of them its most frequent ones, so that areas keep theirs, half spread."""
    colors, places, counts = np.unique(
        np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    frequent = colors[np.argsort(-counts, kind="stable")[: COLORS // 2]]
    spread = picture.quantize(COLORS // 2, Image.Quantize.MAXCOVERAGE).getpalette()
    palette = np.concatenate([frequent, np.reshape(spread, (-1, 3))]).astype(np.uint8)
    _, nearest = KDTree(palette).query(colors)
    reduced = Image.fromarray(nearest.astype(np.uint8)[places].reshape(picture.height, picture.width), "P")
    reduced.putpalette(palette.tobytes())
    return reduced


def pick_output(notebook: nbformat.NotebookNode, number: int) -> bytes:
    """The PNG file of one of the pictures under the cells."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    return base64.b64decode([data["image/png"] for data in outputs if "image/png" in data][number])


def draw_panels(runs: Path, name: str, titles: Mapping[str, tuple[str, ...]]) -> bytes:
    """Some charts of a run, as the board draws them; `titles` are {stage: titles of its charts}."""
    from grpo_kit.display import charts
    from grpo_kit.display.panels import build_panels
    from grpo_kit.display.report import NAMES
    from grpo_kit.runs.reading import read_lines
    from grpo_kit.runs.run import find_run

    run, panels = find_run(name, runs), []
    for stage, wanted in titles.items():
        for panel in build_panels(run, read_lines(run.stage_files(stage).metrics)):
            if panel.title in wanted:
                named = f"{NAMES[stage]}: {panel.title}" if len(titles) > 1 else panel.title
                panels.append(replace(panel, title=named))
    file = io.BytesIO()
    charts.draw_panels(panels).savefig(file, dpi=110)
    return file.getvalue()
