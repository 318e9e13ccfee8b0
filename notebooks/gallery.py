"""Builds `notebooks/gallery/`: the notebooks as run on the tiny policy, a page each, and `index.html` with a card each.

    python notebooks/gallery.py             the pages, in a few minutes
    python notebooks/gallery.py --pictures  renews notes/images too: the picture at the top of each notebook, and what
                                            its page shows on a desktop and on a phone

The folder can be served as it is, by GitHub Pages too: links are relative, and no page has a script or asks another
server for anything. Each notebook runs in a fresh kernel, all in one temporary folder. The tests make the same pages
from the notebooks that they execute anyway, with few steps. A board needs a kernel; the pages show it as it was in the
end.
"""

import base64
import copy
import html
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from nbconvert import HTMLExporter
from traitlets.config import Config

sys.path.append(str(Path(__file__).parent))  # the tests load this file by its path
from pictures import write_pictures
from screens import find_browser, write_screens

FOLDER = Path(__file__).resolve().parent
IN_THE_END = "The board as it was in the end; in a notebook it has a button to stop"
WIDE = 800  # pixels; on a phone a wider picture scrolls sideways, to be readable, and others shrink
SMALLER, LONGEST = 0.68, 860  # how much smaller it is then, and its greatest width in pixels
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
ABOUT = "Each page is a notebook after “Run all” on {cores} with the tiny policy, half a million parameters."


def freeze_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Replace each widget by the HTML that it showed, so that a page needs neither a script nor a server."""
    state = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})

    def parts(model: str) -> Iterator[dict[str, Any]]:
        values = state.get(model.removeprefix("IPY_MODEL_"), {}).get("state", {})
        yield values
        for child in values.get("children", ()):
            yield from parts(child)

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if view := output.get("data", {}).pop(WIDGET, None):
                shown = list(parts(view["model_id"]))
                text = "".join(part.get("value", "") for part in shown if part.get("_model_name") == "HTMLModel")
                output.data["text/html"] = text + describe_controls(shown)
    return notebook


def describe_controls(parts: Sequence[Mapping[str, Any]]) -> str:
    """What a widget lets a reader do in a notebook and not on a page, as a paragraph; empty where that is nothing."""
    kinds = {part.get("_model_name") for part in parts}
    # Without completions to choose from, as in SFT, a board's slider has nowhere to go.
    slides = any(part.get("_model_name") == "IntSliderModel" and part.get("max") for part in parts)
    over = " and a slider over all steps" if slides else ""
    return f"<p><i>{IN_THE_END}{over}.</i></p>" if "ButtonModel" in kinds else ""


def fit_narrow_screens(page: str) -> str:
    """Mark pictures that are too wide for a phone, and let what rich printed wrap unless it is a table."""

    def mark(match: re.Match[str]) -> str:
        width = int.from_bytes(base64.b64decode(match[2])[16:20])  # the header of a PNG file
        narrow = min(round(SMALLER * width), LONGEST)
        return f'<img data-wide style="--narrow:{narrow}px" {match[1]}{match[2]}' if width > WIDE else match[0]

    page = re.sub(r'<img ([^>]*?src="data:image/png;base64,)([^"]{48})', mark, page)
    page = page.replace('alt="No description has been provided for this image"', 'alt="a chart"')
    sentences = r'(<pre style=")white-space:pre;(overflow-x:auto;[^>]*>[^│─┃━]*?</pre>)'
    return re.sub(sentences, r"\1white-space:pre-wrap;\2", page)


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
    page = fit_narrow_screens(page)
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
    target: Path, notebooks: Mapping[str, nbformat.NotebookNode], folders: Sequence[str], about: str
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


def describe_run(cores: int | None = None) -> str:
    """How the notebooks of a gallery were run, with the number of CPU cores; by default those of this process."""
    count = cores or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return ABOUT.format(cores=f"{count} CPU cores" if count > 1 else "one CPU core")


def require_no_warnings(notebook: nbformat.NotebookNode, name: str) -> None:
    """Raise RuntimeError if a cell of an executed notebook printed a warning, which a reader would see in red."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        if output.get("name") == "stderr":
            raise RuntimeError(f"A cell of {name} printed a warning; hide it or mend its cause: {output.text[:300]}")


def main() -> None:
    """Run the notebooks and write the gallery; stop at the first error or warning."""
    executed, pictures = {}, "--pictures" in sys.argv[1:]
    if pictures and not find_browser():
        sys.exit("error: --pictures needs Chromium and its driver; Debian has chromium and chromium-driver.")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRPO_KIT_ROOT": f"{folder}/runs", "PYTHONPATH": str(FOLDER.parent), "HF_HUB_OFFLINE": "1"}
        os.environ.pop("MPLBACKEND", None)
        for source in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
            notebook, started = nbformat.read(source, as_version=4), time.monotonic()
            # Over TCP every kernel would warn that the connection is not encrypted.
            quiet = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
            resources = {"metadata": {"path": folder}}
            nbclient.NotebookClient(notebook, timeout=1800, resources=resources, config=quiet).execute()
            require_no_warnings(notebook, source.stem)
            executed[source.stem] = notebook
            print(f"{source.stem} in {time.monotonic() - started:.0f} s", flush=True)
        target, images = Path(os.environ.get("GRPO_KIT_GALLERY") or FOLDER / "gallery"), FOLDER.parent / "notes/images"
        write_gallery(target, executed, [folder, str(FOLDER.parent)], describe_run())
        if pictures:
            write_pictures(executed, Path(folder) / "runs", images)
            write_screens(target, images, Path(folder) / "browser")
    print(f"open {target / 'index.html'}")


if __name__ == "__main__":
    main()
