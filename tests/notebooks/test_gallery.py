"""The gallery's pages: complete without a script, a server or a link that leads nowhere; and the notebooks' pictures.

`test_notebooks` writes the gallery of the notebooks that it executes, and calls `check_gallery` on it.
"""

import base64
import html
import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.kernels import FOLDER, NAMES, ROOT, code_cells, read_notebook

LARGEST = 120 * 1024  # bytes of a picture, which its notebook carries
IMAGES = ROOT / "notes/images"
PHONE = 390  # pixels
TOP = """# 0 · First: a <title>

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/a/b)

![what it shows](data:image/png;base64,iVBORw0KGgo=)

| Goal | Hardware | Minutes |
|---|---|---|
| See `this` & that | any | 2 |

![curves](curves.png)

[1 Next](01_next.ipynb)"""


def load_gallery(name="gallery"):
    """A module of `notebooks/`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"notebook_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_wide_pages(folder: Path, profile: Path) -> dict[str, int]:
    """{page: its width} of the pages that scroll sideways on a phone; the test is skipped without a browser."""
    screens = load_gallery("screens")
    if not screens.find_browser():
        pytest.skip("Chromium and its driver are not installed; Debian has chromium and chromium-driver")
    driver = screens.open_browser(profile)
    try:
        widths = {page.name: screens.open_page(driver, page, PHONE) for page in sorted(folder.glob("*.html"))}
        return {name: width for name, width in widths.items() if width != PHONE}
    finally:
        driver.quit()


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
        "box": {"_model_name": "VBoxModel", "children": ["IPY_MODEL_text", "IPY_MODEL_stop", "IPY_MODEL_step"]},
        "text": {"_model_name": "HTMLModel", "value": "<b>the board</b>"},
        "stop": {"_model_name": "ButtonModel"},
        "step": {"_model_name": "IntSliderModel", "max": 30},
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
    assert (
        "<b>the board</b><p><i>The board as it was in the end;" in page
        and "in ~/runs" in page
        and "\u2502 ~/a        \u2502" in page
    )
    assert ">Open in Colab</a>" in page and 'href="https://colab.research.google.com/github/a/b"' in page
    assert "curves" in page and "curves.png" not in page
    assert "widgets" in made["00_first"].metadata  # the notebook itself is as it was
    index = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "Run with &lt;care&gt;." in index and "0 · First: a &lt;title&gt;" in index
    assert "<p>See this &amp; that</p>" in index
    assert '<img src="data:image/png;base64,iVBORw0KGgo=" alt="what it shows">' in index


def test_the_index_says_on_how_many_cores_the_notebooks_ran(gallery):
    assert "on one CPU core with" in gallery.describe_run(1) and "on 4 CPU cores with" in gallery.describe_run(4)
    assert re.search("“Run all” on (one|[0-9]+) CPU cores? with the tiny policy", gallery.describe_run())


@pytest.mark.parametrize(
    "text",
    [
        '<script src="x.js">', "<script>", '<img src="https://a.b/c.png">', "<link href='x'>", "@import 'x';",
        "a { background: url(https://a.b) }",
    ],
)  # fmt: skip
def test_the_check_on_pages_can_fail(text):
    assert outside(text) != [] and outside("<img src='data:image/png;base64,A'> url(data:a) url(#b)") == []


# (what a widget consists of, what a page says of it)
CONTROLS = [
    (["ButtonModel", "IntSliderModel 30"], "in a notebook it has a button to stop and a slider over all steps."),
    (["ButtonModel", "IntSliderModel 0"], "in a notebook it has a button to stop."),  # SFT shows no completions
    (["ButtonModel"], "in a notebook it has a button to stop."),  # the search of notebook 5
    (["FloatProgressModel"], ""),
]


def test_a_page_promises_the_controls_that_a_board_has(gallery):
    for kinds, says in CONTROLS:
        parts = [{"_model_name": kind.split()[0], "max": int(f"0{kind}".split()[-1])} for kind in kinds if " " in kind]
        parts += [{"_model_name": kind} for kind in kinds if " " not in kind]
        text = gallery.describe_controls(parts)
        assert (text == "") if not says else text.endswith(f"{says}</i></p>"), kinds


def picture(width: int) -> str:
    """The start of a PNG file of this width, as a page has it."""
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4) + (300).to_bytes(4) + bytes(12)
    return f'src="data:image/png;base64,{base64.b64encode(header).decode()}'


def test_on_a_phone_wide_pictures_scroll_and_sentences_wrap(gallery):
    page = f'<img alt="a" {picture(801)}"><img alt="b" {picture(800)}"><img alt="c" {picture(1512)}">'
    fitted = page.replace('<img alt="a"', '<img data-wide style="--narrow:545px" alt="a"')
    fitted = fitted.replace('<img alt="c"', '<img data-wide style="--narrow:860px" alt="c"')
    assert gallery.fit_narrow_screens(page) == fitted
    printed = '<pre style="white-space:pre;overflow-x:auto;color:red">{}</pre>'
    page = printed.format("a sentence") + printed.format("│ a table │")
    assert gallery.fit_narrow_screens(page) == page.replace("space:pre;", "space:pre-wrap;", 1)


def test_a_gallery_is_not_built_from_notebooks_that_print_warnings(gallery):
    import nbformat

    made = notebook_with_everything()
    gallery.require_no_warnings(made, "00_first")
    made.cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="[library] is slow"))
    with pytest.raises(RuntimeError, match=r"A cell of 00_first printed a warning; .*: \[library\] is slow"):
        gallery.require_no_warnings(made, "00_first")


@pytest.mark.parametrize("name", NAMES)
def test_notes_show_the_main_result_of_each_notebook_on_a_desktop_and_on_a_phone(name):
    screens, page = load_gallery("screens"), (ROOT / "notes/gallery.md").read_text(encoding="utf-8")
    sources = [cell.source for cell in code_cells(read_notebook(name))]
    found = [next(i for i, source in enumerate(sources) if text in source) for text in screens.MAIN[name]]
    assert found == sorted(found)
    words = page.partition(f"](../notebooks/{name}.ipynb)")[2].partition("![")[0]
    assert len(words.split()) > 20  # what there is to see
    for width in screens.WIDTHS:
        with Image.open(IMAGES / f"{name}_{width}.png") as image:
            assert image.width == width and 300 < image.height < 2400 and image.mode == "P"
        assert page.count(f"](images/{name}_{width}.png)") == 1


def test_a_picture_with_few_colours_keeps_its_areas():
    picture = Image.new("RGB", (300, 200), (250, 250, 251))
    for x in range(300):  # a line with more colours than there is room for
        picture.putpixel((x, 0), (x % 256, 255 - x % 256, x // 2))
    picture.paste((230, 159, 0), (10, 10, 40, 40))
    reduced = load_gallery("pictures").reduce_colors(picture)
    assert reduced.mode == "P" and len(reduced.getcolors()) <= 256
    assert [reduced.convert("RGB").getpixel(at) for at in ((5, 5), (20, 20))] == [(250, 250, 251), (230, 159, 0)]


def test_every_picture_is_shown_somewhere_and_all_are_small():
    texts = [ROOT / "README.md", *(ROOT / "notes").rglob("*.md"), *(FOLDER / "src").glob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in texts)
    assert [path.name for path in IMAGES.glob("*") if f"images/{path.name})" not in text] == []
    screens = [path for path in IMAGES.glob("*.png") if re.search(r"_(1280|390)\.png$", path.name)]
    assert len(screens) == 2 * len(NAMES) and sum(path.stat().st_size for path in screens) < 3_000_000


@pytest.mark.slow
def test_a_picture_ends_with_its_cell(monkeypatch, tmp_path):
    screens = load_gallery("screens")
    if not screens.find_browser():
        pytest.skip("Chromium and its driver are not installed; Debian has chromium and chromium-driver")
    cell = '<div class="jp-Cell jp-CodeCell"><div class="jp-InputArea">board()</div><p style="height:1900px">tall</div>'
    (tmp_path / "00_tall.html").write_text(f"{cell}<div class='jp-Cell' style='height:99px'>next</div>")
    monkeypatch.setattr(screens, "MAIN", {"00_tall": ("board(", "board(")})
    screens.write_screens(tmp_path, tmp_path, tmp_path / "browser")
    for width in screens.WIDTHS:
        with Image.open(tmp_path / f"00_tall_{width}.png") as image:
            assert image.width == width and 1900 < image.height < 1990


@pytest.mark.slow
def test_the_check_of_widths_can_fail(tmp_path):
    head = '<!DOCTYPE html><meta name="viewport" content="width=device-width, initial-scale=1">'
    (tmp_path / "narrow.html").write_text(f"{head}<p>text</p>")
    (tmp_path / "wide.html").write_text(f'{head}<div style="width:500px">text</div>')
    assert list(find_wide_pages(tmp_path, tmp_path / "browser")) == ["wide.html"]


@pytest.mark.parametrize("name", NAMES)
def test_each_notebook_opens_with_the_picture_of_its_result(gallery, name):
    top, file = read_notebook(name).cells[0].source, ROOT / "notes/images" / f"{name}.png"
    alt, data = re.search(r"!\[([^]]+)\]\(data:image/png;base64,([^)]+)\)", top).groups()
    assert base64.b64decode(data) == file.read_bytes() and len(alt) > 20
    assert file.stat().st_size <= LARGEST
    assert html.escape(alt) in gallery.make_card(read_notebook(name), name)
