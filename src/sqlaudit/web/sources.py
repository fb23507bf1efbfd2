"""Which models does a browser show, and under which names?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Final

from sqlalchemy import ColumnElement, Table
from sqlalchemy.orm import configure_mappers

from sqlaudit.display import safe
from sqlaudit.exceptions import TrackingError
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.sources import name_of, other_names_of, roots, sources_in


class Sources:
    """The tracked classes and association tables of a browser, found when the first request comes.

    :param given: bases, registries, MetaData, modules, classes and association tables
    """

    def __init__(self, given: Sequence[Any]) -> None:
        self._given = given

    @cached_property
    def by_name(self) -> dict[str, Any]:
        """The sources by the full names of their tables, sorted.

        :raises TrackingError: nothing that was given is tracked
        """
        configure_mappers()
        found = [source for part in self._given for source in sources_in(part)]
        if not found:
            raise TrackingError(
                f"HistoryBrowser was given {list(self._given)!r}, which have no tracked model. Give the base of the "
                "models that @track_table decorates.",
                self._given,
            )
        by_name: dict[str, Any] = {}
        for source in found:  # a base class comes before the classes that share its table
            by_name.setdefault(name_of(source), source)
        return dict(sorted(by_name.items()))

    @cached_property
    def roots(self) -> list[Any]:
        """The association tables and the base classes, which authorization is asked for."""
        return roots(list(self.by_name.values()))

    @cached_property
    def parts(self) -> dict[Any, ColumnElement[bool]]:
        """The criteria of the hierarchies of which subclasses alone are shown, by their base classes.

        :raises TrackingError: the rows of a subclass cannot be told from those of its base class
        """
        parts: dict[Any, ColumnElement[bool]] = {}
        given = [source for source in self.by_name.values() if not isinstance(source, Table)]
        for root in self.roots:
            if isinstance(root, Table) or root in given:
                continue
            model = model_of(root)
            if model.discriminator is None:
                raise TrackingError(
                    f"{model.name} has no column that names the class of a row, so HistoryBrowser cannot show "
                    f"subclasses of it alone. Give it {model.name}, too.",
                    root,
                )
            shown = {each.identity for source in given for each in model_of(source).family() if each.root is model}
            parts[root] = model.discriminator.in_(sorted(shown, key=str))
        return parts

    @cached_property
    def _names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for name, source in self.by_name.items():
            names |= {other.casefold(): name for other in other_names_of(source)}
        return names | {name.casefold(): name for name in self.by_name}

    @cached_property
    def _labelled(self) -> dict[str, Any]:
        labels: dict[str, Any] = {}
        for source in self.by_name.values():
            for model in model_of(source).root.family():
                known = labels.get(model.label, source)
                same = model_of(known).root is model_of(source).root
                by_key = not model.options.resource_id_field  # otherwise a change does not tell the key of its row
                labels[model.label] = known if same and by_key else None
        return labels

    def named(self, name: str) -> Any:
        """Return the source of a table's name; ``None`` if there is none."""
        known = name if name in self.by_name else self._names.get(name.casefold())
        return None if known is None else self.by_name[known]

    def in_path(self, part: str) -> Any:
        """Return the source that a part of a path names, see :func:`path_part`; ``None`` if there is none.

        Older links have the name itself, with its slashes.
        """
        source = self.named(_ESCAPE.sub(lambda match: chr(int(match[1], 16)), part))
        return self.named(part) if source is None else source

    def of_table(self, table: Table) -> Any:
        """Return the source of a live table; ``None`` if it is not shown."""
        source = self.by_name.get(table.fullname)
        return source if source is not None and model_of(source).table.live is table else None

    def like(self, name: str) -> Any:
        """Return the source with the most similar name; ``None`` if none is similar."""
        close = get_close_matches(name.casefold(), self._names, 1)
        return self.by_name[self._names[close[0]]] if close else None

    def name_of(self, source: Any) -> str:
        return name_of(source)

    def labelled(self, label: str) -> Any:
        """Return the source whose rows changes report under a label; ``None`` if the key is not told, or of several."""
        return self._labelled.get(label)

    def title_of(self, source: Any) -> str:
        """Return the name of a source for people: its label, or the name of an association table."""
        return safe(source.name if isinstance(source, Table) else model_of(source).label)


def path_part(name: str) -> str:
    """Return the part of a path that names a table: without slashes, and no part that a browser resolves, as ``..``.

    A slash is ``~2F``. ``%2F`` would not do: servers and proxies decode it, some of them twice.
    """
    special = _SPECIAL if name.strip(".") else _DOT
    return special.sub(lambda match: f"~{ord(match[0]):02X}", name)


_SPECIAL: Final = re.compile("[/%~]")
_DOT: Final = re.compile("[.]")
_ESCAPE: Final = re.compile("~([0-9A-F]{2})")
