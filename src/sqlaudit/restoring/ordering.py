"""In which order must changes be flushed, so that foreign keys and unique constraints allow each flush?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, ForeignKeyConstraint, Table

from sqlaudit.changes import Operation, hashable
from sqlaudit.exceptions import QueryError
from sqlaudit.restoring.plan import Change, fields_of, foreign_keys, unique_columns, writable_relationships_over
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.models import TrackedModel, attribute_of, root_of
from sqlaudit.tracking.tables import tracked_table


@dataclass(slots=True)
class Stages:
    """The changes in stages, usually one. In a stage, each table takes one flush to save and one to delete rows.

    :ivar cleared: attributes to set to NULL before the stages: foreign keys of rows that will be deleted and refer to
        each other in a circle, and unique values that rows exchange in a circle
    :ivar stages: the changes of each stage, in an order in which rows can be inserted
    :ivar postponed: foreign keys of new rows, to set after the stages
    :ivar ranks: the ranks of :func:`table_ranks`
    """

    ranks: dict[TrackedModel, int]

    cleared: list[tuple[Change, set[str]]] = field(default_factory=list)
    stages: list[list[Change]] = field(default_factory=list)
    postponed: list[tuple[Change, set[str]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A foreign key of one row.

    :ivar names: the attributes of its columns
    """

    child: Change
    constraint: ForeignKeyConstraint
    names: set[str]


class Ordering:
    """Puts changes in an order that foreign keys and unique constraints allow.

    A stage saves a table's rows after the rows that they refer to: first updates, then inserts, in the order in which
    objects were added to the session. It deletes rows last, in the reverse order of tables. Changes that need another
    order take another stage.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes
        self.ranks = table_ranks({change.model.root for change in changes})
        self._after: dict[Change, list[Change]] = defaultdict(list)
        self._waiting: dict[Change, int] = dict.fromkeys(changes, 0)
        self._passing_on: dict[Change, dict[Change, set[tuple[Column[Any], ...]]]] = defaultdict(dict)
        """Giver → taker → the columns whose unique value the giver passes on to the taker."""
        self._references: list[tuple[Change, Change, _Reference]] = []
        self._flushes: dict[tuple[Change, Change], int] = {}
        self._stages = Stages(self.ranks)
        self._by_table: dict[tuple[Operation, Table], list[Change]] = defaultdict(list)
        for change in changes:
            for table in change.model.chain:
                self._by_table[change.operation, table.live].append(change)

    def stages(self) -> Stages:
        cleared: dict[Change, set[str]] = defaultdict(set)
        postponed: dict[Change, set[str]] = defaultdict(set)
        known: dict[tuple[Operation, ForeignKeyConstraint], dict[Key, Change]] = {}
        for change in self.changes:
            for constraint in fields_of(change.model).constraints:
                columns = [element.parent for element in constraint.elements]
                names = {attribute_of(change.mapper, column) or "" for column in columns}
                before, after = change.old_values(columns), change.new_values(columns)
                parent = self._providers(known, Operation.INSERT, constraint).get(after or ())
                if parent is not None:
                    if self._is_circular(constraint, change, parent):
                        postponed[change].update(names)
                    elif parent is not change:
                        crosses = _both_new(parent, change) and _crosses_tables(constraint, change)
                        self._require_order(
                            parent, change, _Reference(change, constraint, names), flushes=1 if crosses else None
                        )
                parent = self._providers(known, Operation.DELETE, constraint).get(before or ())
                if parent is not None:
                    if change.operation is Operation.DELETE and self._is_circular(constraint, change, parent):
                        cleared[change].update(names)
                    elif parent is not change:
                        both_gone = change.operation is parent.operation is Operation.DELETE
                        together = both_gone and _has_writable_relationship(constraint)
                        self._require_order(
                            change, parent, _Reference(change, constraint, names), flushes=0 if together else None
                        )
        self._order_unique_values()
        self._stages.stages = self._levels(cleared, postponed)
        self._stages.cleared = list(cleared.items())
        self._stages.postponed = list(postponed.items())
        return self._stages

    def _providers(
        self,
        known: dict[tuple[Operation, ForeignKeyConstraint], dict[Key, Change]],
        operation: Operation,
        constraint: ForeignKeyConstraint,
    ) -> dict[Key, Change]:
        """Return the changes that insert, or delete, rows that a foreign key refers to, by the values referred to."""
        if (operation, constraint) not in known:
            columns = [element.column for element in constraint.elements]
            providers = {}
            for change in self._by_table.get((operation, constraint.referred_table), ()):
                value = change.new_values(columns) if operation is Operation.INSERT else change.old_values(columns)
                if value is not None:
                    providers[value] = change
            known[operation, constraint] = providers
        return known[operation, constraint]

    def _is_circular(self, constraint: ForeignKeyConstraint, child: Change, parent: Change) -> bool:
        if child.operation is Operation.UPDATE or not _is_nullable(constraint):
            return False
        if parent is child:  # MariaDB deletes no row that refers to itself
            return child.operation is Operation.DELETE or _crosses_tables(constraint, child)
        return self.ranks[parent.model.root] > self.ranks[child.model.root]

    def _require_order(
        self, first: Change, second: Change, reference: _Reference | None = None, *, flushes: int | None = None
    ) -> None:
        """Require that a change is made before another.

        :param reference: the foreign key that requires it
        :param flushes: 1 if the second change needs a later flush, 0 if not; ``None`` to decide it by their places
        """
        self._after[first].append(second)
        self._waiting[second] += 1
        if reference is not None:
            self._references.append((first, second, reference))
        if flushes is not None:
            self._flushes[first, second] = max(flushes, self._flushes.get((first, second), 0))

    def _order_unique_values(self) -> None:
        givers: dict[tuple[tuple[Column[Any], ...], Any], Change] = {}
        for change in self.changes:
            if change.operation is not Operation.INSERT:
                for columns in unique_columns(change.model, deferred=False):
                    value = hashable(change.old_values(columns))
                    if value is not None and value != hashable(change.new_values(columns)):
                        givers[columns, value] = change
        if givers:
            for change in self.changes:
                if change.operation is Operation.DELETE:
                    continue
                for columns in unique_columns(change.model, deferred=False):
                    giver = givers.get((columns, hashable(change.new_values(columns))))
                    if giver is not None and giver is not change:
                        if change not in self._passing_on[giver]:
                            self._require_order(giver, change)
                        self._passing_on[giver].setdefault(change, set()).add(columns)

    def _break_cycle(
        self, left: Collection[Change], cleared: dict[Change, set[str]], postponed: dict[Change, set[str]]
    ) -> list[Change]:
        """Return changes to make next although they wait for others, once what they need is NULL.

        :raises QueryError: rows exchange unique values that cannot be NULL
        """
        if free := self._break_references(left, cleared, postponed):
            return free
        stuck = None
        for change in left:
            takers = {taker: value for taker, value in self._passing_on.get(change, {}).items() if taker in left}
            names = [_attribute_to_clear(change, columns) for columns in set().union(*takers.values())]
            if None in names:
                stuck = stuck or change
            elif takers:
                cleared[change].update(filter(None, names))
                for taker in takers:
                    del self._passing_on[change][taker]
                    self._after[change].remove(taker)
                    self._waiting[taker] -= 1
                if free := [taker for taker in takers if not self._waiting[taker]]:
                    return free
        if stuck is not None:
            raise QueryError(
                f"{stuck.name} exchanges a unique value with another row, and none of its columns can be NULL in "
                "between. Give one of the rows another value first.",
                stuck.model.mapper.class_,
            )
        return [next(iter(left))]  # rows of one table that refer to one another: let the database decide

    def _break_references(
        self, left: Collection[Change], cleared: dict[Change, set[str]], postponed: dict[Change, set[str]]
    ) -> list[Change]:
        """Break a circle of rows at a nullable foreign key, NULL meanwhile; return the changes to make next."""
        for edge in list(self._references):
            first, second, reference = edge
            wanted = Operation.INSERT if reference.child is second else Operation.DELETE
            if (
                reference.child.operation is wanted
                and _is_nullable(reference.constraint)
                and first in left
                and second in left
                and self._leads_to(second, first, left)
            ):
                (postponed if wanted is Operation.INSERT else cleared)[reference.child].update(reference.names)
                self._references.remove(edge)
                self._after[first].remove(second)
                self._waiting[second] -= 1
                if not self._waiting[second]:
                    return [second]
        return []

    def _leads_to(self, change: Change, goal: Change, left: Collection[Change]) -> bool:
        """Tell whether a change must be made before another, directly or through others."""
        waiting, seen = [change], {change}
        while waiting:
            waiting_change = waiting.pop()
            if waiting_change is goal:
                return True
            following = [other for other in self._after[waiting_change] if other in left and other not in seen]
            seen.update(following)
            waiting += following
        return False

    def _levels(self, cleared: dict[Change, set[str]], postponed: dict[Change, set[str]]) -> list[list[Change]]:
        levels: dict[Change, int] = dict.fromkeys(self.changes, 0)
        order: list[Change] = []
        ready = [change for change in self.changes if not self._waiting[change]]
        left = dict.fromkeys(self.changes)
        while left:
            if not ready:
                ready = self._break_cycle(left, cleared, postponed)
            following: list[Change] = []
            for change in ready:
                if change not in left:
                    continue
                del left[change]
                order.append(change)
                for other in self._after[change]:
                    if other in left:
                        flushes = self._flushes.get((change, other))
                        if flushes is None:
                            is_before = self._sort_key(change) < self._sort_key(other) or _both_new(change, other)
                            flushes = 0 if is_before else 1
                        levels[other] = max(levels[other], levels[change] + flushes)
                        self._waiting[other] -= 1
                        if not self._waiting[other]:
                            following.append(other)
            ready = following
        stages: dict[int, list[Change]] = defaultdict(list)
        for change in order:
            stages[levels[change]].append(change)
        return [stages[level] for level in sorted(stages)]

    def _sort_key(self, change: Change) -> tuple[int, int, int]:
        """Return the sort key of a change within its stage."""
        rank = self.ranks[change.model.root]
        if change.operation is Operation.DELETE:
            return 1, -rank, 0
        return 0, rank, 0 if change.operation is Operation.UPDATE else 1


def _attribute_to_clear(change: Change, columns: Sequence[Column[Any]]) -> str | None:
    """Return the attribute to set to NULL to free a unique value: if possible, one that changes anyway."""
    names = [
        name
        for column in columns
        if column.nullable and column.computed is None and (name := attribute_of(change.mapper, column))
    ]
    return next((name for name in names if name in change.fields), names[0] if names else None)


def _both_new(first: Change, second: Change) -> bool:
    return first.operation is second.operation is Operation.INSERT and first.model.root is second.model.root


def _crosses_tables(constraint: ForeignKeyConstraint, child: Change) -> bool:
    """Tell whether a foreign key refers to a subclass table of the same hierarchy, which a flush inserts into later."""
    referred = tracked_table(constraint.referred_table)
    return (
        referred is not None
        and root_of(referred) is child.model.root
        and constraint.referred_table not in (constraint.table, child.model.root.table.live)
    )


def _is_nullable(constraint: ForeignKeyConstraint) -> bool:
    return all(element.parent.nullable for element in constraint.elements)


def table_ranks(roots: Collection[TrackedModel]) -> dict[TrackedModel, int]:
    """Return the ranks of hierarchies: a hierarchy comes after the hierarchies that it refers to.

    In a circle of foreign keys, nullable ones are ignored.
    """
    if len(roots) < 2:
        return dict.fromkeys(roots, 0)
    left = {
        root: (set(parents_of(root)), set(parents_of(root, mandatory=True)))
        for root in sorted(roots, key=lambda root: root.table.live.fullname)
    }
    ranks: dict[TrackedModel, int] = {}
    while left:
        free = (
            root for which in (0, 1) for root, parents in left.items() if not parents[which] & (left.keys() - {root})
        )
        following = next(free, next(iter(left)))
        ranks[following] = len(ranks)
        del left[following]
    return ranks


def parents_of(root: TrackedModel, *, mandatory: bool = False) -> list[TrackedModel]:
    """Return the other hierarchies that the tables of a hierarchy refer to.

    :param mandatory: ignore nullable foreign keys
    """
    tables = dict.fromkeys(table.live for model in root.family() for table in model.chain)
    referred = (
        tracked_table(constraint.referred_table)
        for constraint in foreign_keys(tables)
        if not (mandatory and _is_nullable(constraint))
    )
    parents = (root_of(table) for table in referred if table is not None and not table.is_association)
    return [parent for parent in dict.fromkeys(parents) if parent is not root]


def _has_writable_relationship(constraint: ForeignKeyConstraint) -> bool:
    return any(not relationship.post_update for relationship in writable_relationships_over(constraint))
