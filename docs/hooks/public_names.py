"""Fail the build where a public name has no entry in the reference: it has no page, or no docstring."""

import re
from importlib import import_module
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger

import gsqtok

log = get_plugin_logger("public_names")
documented: set[str] = set()


def public() -> set[str]:
    """What ``__all__`` of the package and of the packages in it names."""
    packages = [path.parent.name for path in Path(gsqtok.__file__).parent.glob("*/__init__.py")]
    modules = ["gsqtok", *(f"gsqtok.{name}" for name in packages if name not in ("app", "cli"))]
    names = {f"{m}.{name}" for m in modules for name in getattr(import_module(m), "__all__", [])}
    return {name for name in names if not name.endswith("__")}


def defined_as(name: str) -> str:
    """Where it is defined: a function may have the name of its module, which hides it from the reference."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    return f"{getattr(found, '__module__', module)}.{getattr(found, '__qualname__', attribute)}"


def on_pre_build(config: MkDocsConfig) -> None:
    """Forget an earlier build: mkdocs serve builds again."""
    documented.clear()


def on_post_page(output: str, **_: object) -> None:
    """Note what a page documents."""
    documented.update(re.findall(r'id="(gsqtok[\w.]*)"', output))


def on_post_build(config: MkDocsConfig) -> None:
    """A warning for each name that no page documents, which ends a strict build."""
    for name in sorted(name for name in public() if not {name, defined_as(name)} & documented):
        log.warning(f"{name} is public, but no page documents it: add it to docs/api, or give it a docstring")
