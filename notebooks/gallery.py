"""Builds `notebooks/gallery/NN_name.html`: the notebooks as run on the tiny policy, with their outputs.

    python notebooks/gallery.py

Each notebook runs in a fresh kernel, all in one temporary folder. The board needs a kernel; the pages show it as it was
when the training ended.
"""

import os
import re
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat
from nbconvert import HTMLExporter
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
NOTE = "The board as it was when the training ended; in a notebook it has a button to stop and a slider over all steps."
WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"


def freeze_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace each widget by the HTML that it showed, so that a page needs neither a script nor a server."""
    state = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})

    def html(model: str) -> str:
        values = state.get(model.removeprefix("IPY_MODEL_"), {}).get("state", {})
        children = "".join(html(child) for child in values.get("children", ()))
        return values.get("value", "") if values.get("_model_name") == "HTMLModel" else children

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if view := output.get("data", {}).pop(WIDGET, None):
                output.data["text/html"] = f"{html(view['model_id'])}<p><i>{NOTE}</i></p>"
    return notebook


def hide_folder(text: str, folder: str) -> str:
    """Write `~` for `folder` in a text; cells of tables keep their width."""
    text = re.sub(rf"{folder}([^│\n]*)│", lambda match: f"~{match[1]}{' ' * (len(folder) - 1)}│", text)
    return text.replace(folder, "~")


def main() -> None:
    """Run the notebooks and write one page for each; stop at the first error."""
    (FOLDER / "gallery").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRPO_KIT_ROOT": f"{folder}/runs", "PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
        os.environ.pop("MPLBACKEND", None)
        for source in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
            notebook, started = nbformat.read(source, as_version=4), time.monotonic()
            # Over TCP every kernel would warn that the connection is not encrypted.
            quiet = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
            resources = {"metadata": {"path": folder}}
            nbclient.NotebookClient(notebook, timeout=1800, resources=resources, config=quiet).execute()
            page, _ = HTMLExporter().from_notebook_node(freeze_widgets(notebook), {"metadata": {"name": source.stem}})
            page = hide_folder(hide_folder(page, folder), str(FOLDER.parent))
            target = FOLDER / "gallery" / f"{source.stem}.html"
            target.write_text(re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page), encoding="utf-8")
            print(f"{target.relative_to(FOLDER.parent)} in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
