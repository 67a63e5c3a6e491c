"""Make the first page of the site from README.md, so that there is one face and not two."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add index.md."""
    readme = Path(config.config_file_path).parent / "README.md"
    files.append(File.generated(config, "index.md", content=home(readme.read_text())))
    return files


def home(readme: str) -> str:
    """README.md with links as they are seen from docs/; links to what is no page of the site become their words.

    Args:
        readme: its text, with links relative to the repository.
    """

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        if target.startswith(("http", "#")):
            return found[0]
        if target.startswith("docs/"):
            return f"[{words}]({target.removeprefix('docs/')})"
        return f"[{words}]({PAGES[target]})" if target in PAGES else words

    return "---\nhide: [navigation]\n---\n" + re.sub(r"\[([^\[\]]+)\]\(([^)]+)\)", link, readme)
