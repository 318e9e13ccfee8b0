"""The versions of TRL and transformers whose private names the kit uses."""

import warnings
from importlib import metadata

VERSIONS = {"trl": "1.16.0", "transformers": "5.23.0"}


def find_untested() -> dict[str, str]:
    """{library: its installed version} where TRL or transformers is not the version in VERSIONS."""
    installed = {library: metadata.version(library) for library in VERSIONS}
    return {library: version for library, version in installed.items() if version != VERSIONS[library]}


def check_versions() -> None:
    """Warn when TRL or transformers is not the version whose private names are used here."""
    for library, installed in find_untested().items():
        version = VERSIONS[library]
        warnings.warn(
            f"{library} is {installed}; training uses names that are private in {library} and was tested with "
            f"{version}. Install that version: pip install {library}=={version}",
            stacklevel=2,
        )
