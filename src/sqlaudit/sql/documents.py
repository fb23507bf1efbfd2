"""What does a column of JSON hold under a name? As text, which a number is, too, on every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class text_under(FunctionElement[str]):
    """The text, or the number as text, that the documents of a column hold under a name. Upper case matters.

    :param documents: a column of JSON
    """

    type = String()
    inherit_cache = True

    def __init__(self, documents: Any, name: str) -> None:
        super().__init__(documents[name].as_string())


@compiles(text_under)
def _text_under(element: text_under, compiler: SQLCompiler, **kw: Any) -> str:
    (text,) = element.clauses
    return compiler.process(text, **kw)


@compiles(text_under, "sqlite")
def _number_as_text(element: text_under, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({_text_under(element, compiler, **kw)} AS TEXT)"
