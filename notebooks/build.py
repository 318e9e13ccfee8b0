"""Builds `notebooks/NN_name.ipynb` from `notebooks/src/NN_name.py` (py:percent format).

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
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

from grpo_kit.runs.installation import REPOSITORY, read_install_cell

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def embed_picture(match: re.Match[str]) -> str:
    """A link to a PNG file, as a `data:` URL in its place."""
    file = FOLDER / match[1]
    return f"](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})"


def build(source: Path, repository: str = REPOSITORY) -> str:
    """Convert one py:percent file into the text of a notebook."""
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


def main() -> None:
    """Build every notebook that has a source in `src/`."""
    for source in sorted((FOLDER / "src").glob("[0-9][0-9]_*.py")):
        target = FOLDER / f"{source.stem}.ipynb"
        target.write_text(build(source), encoding="utf-8", newline="\n")
        print(target.relative_to(FOLDER.parent))


if __name__ == "__main__":
    main()
