"""Builds `notebooks/NN_name.ipynb` from `notebooks/src/NN_name.py` (py:percent format), and the README's links to them.

    python notebooks/build.py

Edit the sources, not the notebooks: a test fails if the two differ. The same source always gives the same bytes. The
cell "Install" is `grpo_kit/runs/install_cell.py.txt`. The word REPOSITORY in a source becomes `REPOSITORY` of
`grpo_kit/runs/installation.py`, the owner and name on GitHub; while that is empty, badges and links with it are left
out. A picture of `notes/images` becomes part of the notebook, which may be opened far from it. A built notebook has no
outputs, no execution counts, and no metadata of the machine that built it. A cell's id is a hash of its text, so that
an edit does not change the ids of other cells.
"""

import base64
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

from grpo_kit.runs.installation import REPOSITORY, read_install_cell

FOLDER = Path(__file__).resolve().parent
README = FOLDER.parent / "README.md"
# What of the README depends on `REPOSITORY`: the address in this line, and the part between these two.
CLONE = r"(?m)^(    git clone )\S+( grpo-kit )"
START, END = "<!-- links: written by `make notebooks` -->", "<!-- end of the links -->"
WITH_OWNER = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/00_quickstart.ipynb)
[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/00_quickstart.ipynb)

[**Every notebook with its outputs**](PAGES), to read without running anything; [what to see in each](notes/gallery.md).
[`pages.yml`](.github/workflows/pages.yml) builds these pages with each push; it needs *GitHub Actions* as the source
under *Settings, Pages*, and its job `deploy` fails until that is chosen.
"""  # noqa: E501
WITHOUT_OWNER = """\
[**What each notebook shows**](notes/gallery.md), in pictures. `make gallery` writes the whole pages to
`notebooks/gallery/`; open its `index.html`.

`ADDRESS` above is where this repository lies. **Badges for Colab and Kaggle**, the address to clone and that of a
served gallery stand here once the kit has an owner on GitHub: write owner and name into `REPOSITORY` in
[`grpo_kit/runs/installation.py`](grpo_kit/runs/installation.py) and run `make notebooks`. Until then nothing links to a
name that somebody else could register, and Colab and Kaggle install the kit from a wheel,
[below](#on-colab-and-kaggle). [`pages.yml`](.github/workflows/pages.yml) builds the gallery with each push and serves
it where *GitHub Actions* is the source under *Settings, Pages*; its job `deploy` fails until that is chosen. The
workflow has not run yet.
"""
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def require_repository(repository: str) -> None:
    """Raise ValueError unless `repository` is empty, or an owner and a name as GitHub takes them."""
    if repository and not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.\.?$|.*\.git$)[\w.-]{1,100}", repository, re.A
    ):
        raise ValueError(
            f"REPOSITORY in grpo_kit/runs/installation.py is {repository!r}; it is an owner and a name on GitHub. "
            "Write it like ada/grpo-kit, without the address before it, .git or / after it; or leave it empty."
        )


def embed_picture(match: re.Match[str]) -> str:
    """A link to a PNG file, as a `data:` URL in its place."""
    file = FOLDER / match[1]
    return f"](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})"


def build(source: Path, repository: str = REPOSITORY) -> str:
    """Convert one py:percent file into the text of a notebook.

    Raises:
        ValueError: `repository` is neither empty nor like ada/grpo-kit.
    """
    require_repository(repository)
    cells, seen = [], Counter()
    text = source.read_text(encoding="utf-8")
    if not repository:  # badges are lines of their own; a link in brackets follows the link to the file
        text = re.sub(r"(# \[!\[.*REPOSITORY.*\n)+#\n", "", text)
        text = re.sub(r"\n?# \(\[[^]]*\]\([^)]*REPOSITORY[^)]*\)\)", "", text)
    text = text.replace("REPOSITORY", repository)
    text = re.sub(r"\]\((\.\./notes/images/\w+\.png)\)", embed_picture, text)
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        code = read_install_cell(repository) if cell.source.startswith("# @title Install") else cell.source
        # The formatter writes `# @param`; Colab writes form fields without the space.
        body = re.sub(r"# @(?=param|title)", "#@", code)
        digest = hashlib.sha256(f"{cell.cell_type} {body}".encode()).hexdigest()[:12]
        seen[digest] += 1
        new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        built = new(body, id=digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
        if "cellView" in cell.metadata:
            built.metadata["cellView"] = cell.metadata["cellView"]  # Colab shows the form and hides the code
        cells.append(built)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def pages_address(repository: str) -> str:
    """Where GitHub Pages serves a repository's pages.

    >>> pages_address("Ada/kit"), pages_address("Ada/ada.github.io")
    ('https://ada.github.io/kit/', 'https://ada.github.io/')
    """
    owner, name = repository.split("/")
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def link_notebooks(readme: str, repository: str = REPOSITORY) -> str:
    """The README with badges and the addresses of the served gallery and to clone; without an owner, with none of them.

    Raises:
        ValueError: the README has not both lines that enclose its links, or no line that clones the repository; or
            `repository` is neither empty nor like ada/grpo-kit.
    """
    require_repository(repository)
    address = f"https://github.com/{repository}" if repository else "ADDRESS"
    readme, lines = re.subn(CLONE, rf"\g<1>{address}\2", readme)
    if lines != 1:
        raise ValueError(f"README.md has {lines} lines `    git clone ... grpo-kit `; put the one back.")
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md has no lines {START!r} and {END!r}; put them back.")
    links = WITHOUT_OWNER
    if repository:
        links = WITH_OWNER.replace("PAGES", pages_address(repository)).replace("REPOSITORY", repository)
    return f"{before}{start}\n{links}{end}{after}"


def main() -> None:
    """Build every notebook that has a source in `src/`, and the README's links."""
    try:
        readme = link_notebooks(README.read_text(encoding="utf-8"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    README.write_text(readme, encoding="utf-8", newline="\n")
    for source in sorted((FOLDER / "src").glob("[0-9][0-9]_*.py")):
        target = FOLDER / f"{source.stem}.ipynb"
        target.write_text(build(source), encoding="utf-8", newline="\n")
        print(target.relative_to(FOLDER.parent))


if __name__ == "__main__":
    main()
