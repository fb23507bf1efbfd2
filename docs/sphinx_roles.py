"""Docstrings speak reStructuredText, this site Markdown: what a role or a code block of the one is in the other."""

import re
from typing import Any

import griffe

import sqlaudit

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")
_CODE_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:(?: +.*)?\n)+?)(?=\S|\Z)", re.MULTILINE)


def _as_link(role: re.Match[str]) -> str:
    name = role[2]
    shown, head = (name.rpartition(".")[2] if role[1] else name), name.removeprefix("sqlaudit.").split(".")
    public = [place for place, part in enumerate(head) if part in sqlaudit.__all__]
    return f"[`{shown}`][{'.'.join(['sqlaudit', *head[public[0] :]])}]" if public else f"`{shown}`"


def _as_fence(block: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in block[2].strip("\n").splitlines()]
    return "\n".join([f"```{block[1]}", *lines, "```", "", ""])


class SphinxRoles(griffe.Extension):
    """Turn the docstrings of everything that is read into Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_as_link, _CODE_BLOCK.sub(_as_fence, obj.docstring.value + "\n")).rstrip()
