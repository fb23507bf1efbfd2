"""The site shows sections of README.md where a page says ``{{ README: Limits }}``: it is written once."""

import re
from pathlib import Path
from typing import Any

_README = Path(__file__).parent.parent / "README.md"
_PLACE = re.compile(r"^\{\{ README: (.+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Put the sections in, with their links as the site has them."""
    return _PLACE.sub(lambda found: _section(found[1]), markdown)


def _section(title: str) -> str:
    _, _, rest = _README.read_text(encoding="utf-8").partition(f"\n## {title}\n")
    if not rest:
        raise ValueError(f"README.md has no section {title!r}.")
    text = rest.partition("\n## ")[0]
    text = re.sub(r"\[([^\]]+)\]\((examples/[^)]+)\)", r"\1 (`\2`)", text)
    return text.replace("](docs/", "](").replace("](#ways-to-write-a-row)", "](writing.md)")
