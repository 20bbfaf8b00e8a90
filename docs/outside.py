"""Owns links that lead out of the documentation into the repository: on the site, which has no such files, they become
the file's path, and one that leads nowhere is a warning."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.outside")
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>(?:\.\./)+[^)#\s]*)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page's text; `page` and `config` are MkDocs'."""
    docs = Path(config.docs_dir)

    def one(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match["path"]))
        if not path.startswith("../"):
            return match[0]
        inside = path.removeprefix("../")
        if not (docs.parent / inside).exists():
            log.warning("%s links to %s, which is not in the repository", page.file.src_uri, inside)
        text = match["text"].strip("`")
        return f"`{inside}`" if text == inside or text in inside else f"{match['text']} (`{inside}`)"

    return _LINK.sub(one, markdown)
