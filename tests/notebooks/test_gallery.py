"""The gallery's pages: complete without a script, a server or a link that leads nowhere; and the notebooks' pictures.

`test_notebooks` writes the gallery of the notebooks that it executes, and calls `check_gallery` on it.
"""

import base64
import html
import importlib.util
import re
from pathlib import Path

import pytest

from tests.helpers.kernels import FOLDER, NAMES, ROOT, read_notebook

LARGEST = 120 * 1024  # bytes of a picture, which its notebook carries
TOP = """# 0 · First: a <title>

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/a/b)

![what it shows](data:image/png;base64,iVBORw0KGgo=)

| Goal | Hardware | Minutes |
|---|---|---|
| See `this` & that | any | 2 |

![curves](curves.png)

[1 Next](01_next.ipynb)"""


def load_gallery():
    spec = importlib.util.spec_from_file_location("notebook_gallery", FOLDER / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outside(page: str) -> list[str]:
    """What a browser would fetch or run when it opens a page: scripts, and files that are not in the page."""
    found = re.findall(r"<script\b[^>]*>", page)
    found += [url for url in re.findall(r"""\bsrc=["']([^"']*)""", page) if not url.startswith("data:")]
    found += re.findall(r"<link\b[^>]*>|@import[^;]*;|url\(\s*[\"']?(?!data:|#)[^)]*", page)
    return found


def check_gallery(folder: Path, names: tuple[str, ...], machine: list[str]) -> None:
    """Assert that a gallery is complete, needs nothing from elsewhere, and names no folder of this machine."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [".nojekyll", "index.html", *(f"{n}.html" for n in names)]
    )
    for path in folder.glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert outside(page) == [], path.name
        assert not [place for place in machine if place in page], path.name
        links = [link for link in re.findall(r'href="([^"#]*)"', page) if not re.match(r"https?:|data:", link)]
        assert links and [link for link in links if not (folder / link).is_file()] == [], path.name
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<a class="card" href="(\w+)\.html">', index) == list(names)


@pytest.fixture(scope="module")
def gallery():
    return load_gallery()


def notebook_with_everything():
    import nbformat

    state = {
        "box": {"_model_name": "VBoxModel", "children": ["IPY_MODEL_text"]},
        "text": {"_model_name": "HTMLModel", "value": "<b>the board</b>"},
    }
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}, "text/plain": "VBox()"}
    outputs = [
        nbformat.v4.new_output("display_data", view),
        nbformat.v4.new_output("stream", text="in /machine/runs\n\u2502 /machine/a \u2502\n"),
    ]
    cells = [nbformat.v4.new_markdown_cell(TOP), nbformat.v4.new_code_cell("board", outputs=outputs)]
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {k: {"state": v} for k, v in state.items()}}}
    return nbformat.v4.new_notebook(cells=cells, metadata={"widgets": widgets})


def test_a_gallery_can_be_served_as_it_is_and_asks_nobody_for_anything(gallery, tmp_path):
    made = {"00_first": notebook_with_everything(), "01_next": notebook_with_everything()}
    (tmp_path / "site").mkdir()
    (tmp_path / "site/09_renamed.html").touch()  # of an earlier version
    gallery.write_gallery(tmp_path / "site", made, ["/machine"], "Run with <care>.")
    check_gallery(tmp_path / "site", ("00_first", "01_next"), ["/machine"])
    page = (tmp_path / "site/00_first.html").read_text(encoding="utf-8")
    assert "<b>the board</b>" in page and "in ~/runs" in page and "\u2502 ~/a        \u2502" in page
    assert ">Open in Colab</a>" in page and 'href="https://colab.research.google.com/github/a/b"' in page
    assert "curves" in page and "curves.png" not in page
    assert "widgets" in made["00_first"].metadata  # the notebook itself is as it was
    index = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "Run with &lt;care&gt;." in index and "0 · First: a &lt;title&gt;" in index
    assert "<p>See this &amp; that</p>" in index
    assert '<img src="data:image/png;base64,iVBORw0KGgo=" alt="what it shows">' in index


@pytest.mark.parametrize(
    "text",
    [
        '<script src="x.js">', "<script>", '<img src="https://a.b/c.png">', "<link href='x'>", "@import 'x';",
        "a { background: url(https://a.b) }",
    ],
)  # fmt: skip
def test_the_check_on_pages_can_fail(text):
    assert outside(text) != [] and outside("<img src='data:image/png;base64,A'> url(data:a) url(#b)") == []


@pytest.mark.parametrize("name", NAMES)
def test_each_notebook_opens_with_the_picture_of_its_result(gallery, name):
    top, file = read_notebook(name).cells[0].source, ROOT / "notes/images" / f"{name}.png"
    alt, data = re.search(r"!\[([^]]+)\]\(data:image/png;base64,([^)]+)\)", top).groups()
    assert base64.b64decode(data) == file.read_bytes() and len(alt) > 20
    assert file.stat().st_size <= LARGEST
    assert html.escape(alt) in gallery.make_card(read_notebook(name), name)
