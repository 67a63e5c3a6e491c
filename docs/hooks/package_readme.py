"""The README as a package index shows it, where links into the repository lead nowhere.

With the repository's address (pyproject.toml, ``tool.hatch.metadata.hooks.custom``) they become absolute. Until it has
one, links become their words, and images are left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class PackageReadme(MetadataHookInterface):
    """Puts the text into the metadata when a wheel or a source distribution is built."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the readme."""
        text = outside(Path(self.root, "README.md").read_text(encoding="utf-8"), self.config.get("repository", ""))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def outside(readme: str, repository: str) -> str:
    """README.md without relative links.

    Args:
        readme: its text.
        repository: address of the repository, such as ``https://github.com/OWNER/NAME``, or "".
    """

    def image(found: re.Match[str]) -> str:
        return f"![{found[1]}]({repository}/raw/main/{found[2]})\n\n" if repository else ""

    def link(found: re.Match[str]) -> str:
        return f"[{found[1]}]({repository}/blob/main/{found[2]})" if repository else found[1]

    relative = r"\[([^\[\]]+)\]\((?!https?://|#)([^)]+)\)"
    return re.sub(rf"(?<!!){relative}", link, re.sub(rf"!{relative}\n*", image, readme))
