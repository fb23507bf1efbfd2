"""Make Markdown of the docstrings, which are written in reStructuredText.

Names that are not public do not stand in signatures: their meaning does.
"""

import ast
import re
from typing import Any

import griffe

import sqlaudit

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`(~?)([\w.]+)`")
_CODE_BLOCK = re.compile(
    r"^\.\. code-block:: (\w+)\n\n((?:(?: +.*)?\n)+?)(?=\S|\Z)", re.MULTILINE
)
_UNPACKED = re.compile(r"Unpack\[(\w+)\]")
_NAME = re.compile(r"\b[A-Za-z_]\w*\b")


def _as_link(role: re.Match[str]) -> str:
    """Return a link to the public object that a role names, or to its class."""
    path = role[2].removeprefix("sqlaudit.").split(".")
    shown = path[-1] if role[1] else ".".join(path)
    for name in path:
        if name in sqlaudit.__all__:
            return f"[`{shown}`][sqlaudit.{name}]"
    return f"`{shown}`"


def _as_fence(block: re.Match[str]) -> str:
    lines = [
        line.removeprefix("    ") for line in block[2].strip("\n").splitlines()
    ]
    return "\n".join([f"```{block[1]}", *lines, "```", "", ""])


def _spelt_out(
    annotation: str | griffe.Expr | None, function: griffe.Function
) -> str | griffe.Expr | None:
    """Replace the names that a module gives to types by these types."""

    def meaning(name: re.Match[str]) -> str:
        try:
            found: Any = function.modules_collection[function.resolve(name[0])]
            is_name = found.path.startswith("sqlaudit") and found.is_attribute
        except (
            KeyError,
            griffe.NameResolutionError,
            griffe.AliasResolutionError,  # what SQLAlchemy defines
        ):
            return name[0]
        value = str(found.value) if is_name else ""
        is_type = "[" in value or "|" in value
        return value if is_type and "TypeVar" not in value else name[0]

    if annotation is None:
        return None
    text = _NAME.sub(meaning, str(annotation))
    if text == str(annotation):
        return annotation
    node = ast.parse(text, mode="eval").body
    return griffe.get_annotation(node, parent=function)


def _unpack(function: griffe.Function) -> None:
    """Replace ``**filters: Unpack[…]`` by what the docstring describes."""
    for parameter in list(function.parameters):
        name = _UNPACKED.fullmatch(str(parameter.annotation))
        text = function.docstring.value if function.docstring else ""
        if name and f":param {parameter.name}:" not in text:
            typed_dict = function.modules_collection[function.resolve(name[1])]
            del function.parameters[parameter.name]
            for field in typed_dict.all_members.values():
                if field.is_attribute:
                    keyword = griffe.Parameter(
                        field.name,
                        annotation=field.annotation,
                        kind=griffe.ParameterKind.keyword_only,
                        default="...",
                    )
                    function.parameters.add(keyword)


class SphinxRoles(griffe.Extension):
    """Prepare everything that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = _CODE_BLOCK.sub(_as_fence, obj.docstring.value + "\n")
            obj.docstring.value = _ROLE.sub(_as_link, text).rstrip()

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for obj in pkg.modules.values():
            self._spell_out(obj)
        for name, member in list(pkg.members.items()):
            if member.is_alias and self._is_module(pkg, member.target_path):
                function = f"{member.target_path}.{name}"  # of the same name
                pkg.set_member(name, griffe.Alias(name, function, parent=pkg))

    @staticmethod
    def _is_module(pkg: griffe.Module, path: str) -> bool:
        found: Any = pkg
        for name in path.split(".")[1:]:
            found = found.members.get(name)
            if found is None or found.is_alias:
                return False
        return bool(found.is_module)

    def _spell_out(self, obj: griffe.Object) -> None:
        for member in obj.members.values():
            if isinstance(member, griffe.Function):
                if "operations" in member.parameters:
                    del member.parameters["operations"]  # Alembic gives it
                _unpack(member)
                for parameter in member.parameters:
                    annotation = _spelt_out(parameter.annotation, member)
                    parameter.annotation = annotation
                    if str(parameter.default).startswith("_"):
                        parameter.default = "..."
            elif isinstance(member, griffe.Attribute):
                if member.value and str(member.value).startswith("_"):
                    member.value = "None"  # what a descriptor gives the class
                elif member.value and str(member.value) in obj.parent.members:
                    member.value = "..."  # a function of its module
            elif isinstance(member, griffe.Module | griffe.Class):
                self._spell_out(member)
