"""Builds `notebooks/gallery/`: the notebooks as run on the tiny policy, a page each, and `index.html` with a card each.

    python notebooks/gallery.py             the pages, in a few minutes
    python notebooks/gallery.py --pictures  renews notes/images/NN_name.png too, the picture at the top of each notebook

The folder can be served as it is, by GitHub Pages too: links are relative, and no page has a script or asks another
server for anything. Each notebook runs in a fresh kernel, all in one temporary folder. The tests make the same pages
from the notebooks that they execute anyway, with few steps. The board needs a kernel; the pages show it as it was when
the training ended.
"""

import copy
import html
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbclient
import nbformat
from nbconvert import HTMLExporter
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
NOTE = "The board as it was when the training ended; in a notebook it has a button to stop and a slider over all steps."
WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
INSTALL = "#@title Install"
BADGE = r'<a href="(https://(?:colab\.research|kaggle)[^"]+)"[^>]*><img [^>]*alt="([^"]+)"[^>]*/?></a>'
# `gallery.css` is for both the pages, beyond nbconvert's own style, and the index: nothing is wider than the screen.
STYLE = f"<style>\n{(FOLDER / 'gallery.css').read_text(encoding='utf-8')}</style>\n"
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
{style}</head>
<body class="index">
<h1>{title}</h1>
<p>{about}</p>
<main>
{cards}
</main>
</body>
</html>
"""
TITLE = "grpo-kit: the notebooks with their outputs"
CARD = '<a class="card" href="{name}.html">{picture}<h2>{title}</h2><p>{goal}</p></a>'
ABOUT = "Each page is a notebook after “Run all” on two CPU cores with the tiny policy, half a million parameters."


def freeze_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace each widget by the HTML that it showed, so that a page needs neither a script nor a server."""
    state = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})

    def shown(model: str) -> str:
        values = state.get(model.removeprefix("IPY_MODEL_"), {}).get("state", {})
        children = "".join(shown(child) for child in values.get("children", ()))
        return values.get("value", "") if values.get("_model_name") == "HTMLModel" else children

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if view := output.get("data", {}).pop(WIDGET, None):
                output.data["text/html"] = f"{shown(view['model_id'])}<p><i>{NOTE}</i></p>"
    return notebook


def hide_folder(text: str, folder: str) -> str:
    """Write `~` for `folder` in a text; cells of tables keep their width."""
    text = re.sub(rf"{folder}([^│\n]*)│", lambda match: f"~{match[1]}{' ' * (len(folder) - 1)}│", text)
    return text.replace(folder, "~")


def make_page(notebook: nbformat.NotebookNode, name: str, folders: Sequence[str]) -> str:
    """An executed notebook as one HTML page without scripts; `folders` of this machine become `~`.

    Badges, which are pictures of other servers, become links with words.
    """
    shown = freeze_widgets(copy.deepcopy(notebook))
    for cell in shown.cells:
        if cell.source.startswith(INSTALL):
            cell.source = INSTALL  # Colab hides its code, too
    page, _ = HTMLExporter().from_notebook_node(shown, {"metadata": {"name": name}})
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    page = re.sub(BADGE, r'<a href="\1">\2</a>', page)
    page = re.sub(r'<img (?=[^>]*src="(?!data:))[^>]*?(?:alt="([^"]*)")?[^>]*>', r"\1", page)  # of a folder or a server
    page = page.replace("</head>", f"{STYLE}</head>", 1)
    page = re.sub(r"(<body\b[^>]*>)", r'\1<p><a href="index.html">All notebooks</a></p>', page, count=1)
    for folder in folders:
        page = hide_folder(page, folder)
    return re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', page)


def make_card(notebook: nbformat.NotebookNode, name: str) -> str:
    """A notebook's card: title, goal and picture from its opening."""
    top = notebook.cells[0].source
    title = re.match(r"# (.+)", top)[1]
    goal = re.search(r"\|---\|---\|---\|\n\| (.+?) \|", top)[1].replace("`", "")
    found = re.search(r"!\[([^]]*)\]\((data:image/png;base64,[^)]+)\)", top)
    picture = f'<img src="{found[2]}" alt="{html.escape(found[1])}">' if found else ""
    return CARD.format(name=name, picture=picture, title=html.escape(title), goal=html.escape(goal))


def write_gallery(
    target: Path, notebooks: Mapping[str, nbformat.NotebookNode], folders: Sequence[str], about: str = ABOUT
) -> None:
    """Write the pages of executed notebooks and their index.

    Args:
        target: the folder; it is made where it is missing.
        notebooks: {name: executed notebook}, in the order of the cards.
        folders: folders of this machine that no page may name.
        about: a sentence of the index, how the notebooks were run.
    """
    target.mkdir(parents=True, exist_ok=True)
    for page in target.glob("[0-9][0-9]_*.html"):
        page.unlink()  # also those of notebooks that are gone
    for name, notebook in notebooks.items():
        (target / f"{name}.html").write_text(make_page(notebook, name, folders), encoding="utf-8")
    cards = "\n".join(make_card(notebook, name) for name, notebook in notebooks.items())
    (target / "index.html").write_text(
        INDEX.format(title=TITLE, style=STYLE, about=html.escape(about), cards=cards), encoding="utf-8"
    )
    (target / ".nojekyll").touch()  # GitHub Pages then serves the files as they are


def main() -> None:
    """Run the notebooks and write the gallery; stop at the first error."""
    executed = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRPO_KIT_ROOT": f"{folder}/runs", "PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
        os.environ.pop("MPLBACKEND", None)
        for source in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
            notebook, started = nbformat.read(source, as_version=4), time.monotonic()
            # Over TCP every kernel would warn that the connection is not encrypted.
            quiet = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
            resources = {"metadata": {"path": folder}}
            nbclient.NotebookClient(notebook, timeout=1800, resources=resources, config=quiet).execute()
            executed[source.stem] = notebook
            print(f"{source.stem} in {time.monotonic() - started:.0f} s", flush=True)
        if "--pictures" in sys.argv[1:]:
            from pictures import write_pictures

            write_pictures(executed, Path(folder) / "runs", FOLDER.parent / "notes" / "images")
        target = Path(os.environ.get("GRPO_KIT_GALLERY") or FOLDER / "gallery")
        write_gallery(target, executed, [folder, str(FOLDER.parent)])
    print(f"open {target / 'index.html'}")


if __name__ == "__main__":
    main()
