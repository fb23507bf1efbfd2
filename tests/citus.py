"""Which statements does Citus, a distributed PostgreSQL, refuse? This module reads their text by its rules.

Citus sends a statement to one shard if the distribution column of each table in it equals a parameter. It sends others
to all shards, so the rows that a statement joins must be on the same shard. Citus 14 refuses what is refused here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Tree = list[Any]
"""Words, and a tree for each pair of parentheses."""
Place = tuple[int, str, str]
"""A column of a table in a block: the block, the alias and the column."""

_CAST = re.compile(r"::(?:(?:TIMESTAMP|TIME) WITH(?:OUT)? TIME ZONE|[\w.\"]+(?:\([\d, ]+\))?)(?:\[\])*")
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | %\(\w+\)s | \$?\d+ | [(),] | (?:"[^"]+"|\w+)(?:\.(?:"[^"]+"|\w+|\*))* | [^\s\w'"(),%$]+ | %""",
    re.VERBOSE,
)
_PARAMETER = re.compile(r"['%$\d]")
_BEGINNINGS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
_CLAUSES = ("FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT", "FOR", "SET", "RETURNING", "USING")
_JOINS = ("JOIN", "LEFT", "RIGHT", "FULL", "INNER", "OUTER", "CROSS", "LATERAL")


@dataclass(eq=False)
class Block:
    """A SELECT, INSERT, UPDATE or DELETE.

    :ivar is_expression: True in an expression, False in a FROM or WITH clause
    :ivar sources: the name of a table, a block, or ``None`` for a function, by alias
    :ivar equations: the sides of the equations that hold for all rows
    :ivar outputs: the columns that it selects, by name
    """

    words: Tree
    parent: "Block | None" = None
    is_expression: bool = False
    ctes: "dict[str, Block]" = field(default_factory=dict)
    sources: "dict[str, str | Block | None]" = field(default_factory=dict)
    equations: list[tuple[str, str]] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    inner: "list[Block]" = field(default_factory=list)

    def __post_init__(self) -> None:
        words = self._without_ctes(self.words)
        parts = list(_split(words, ("UNION", "EXCEPT", "INTERSECT")))
        if len(parts) > 1:
            first, *_ = [self._add([word for word in part if word != "ALL"]) for part in parts]
            self.outputs = {name: f"{id(first)}.{name}" for name in first.outputs}
            self.sources = {str(id(first)): first}
            return
        if words[0] == "INSERT":
            words = next((words[place:] for place, word in enumerate(words) if word == "SELECT"), words)
        clauses = _clauses(words)
        for word, clause in clauses:
            if word in ("FROM", "USING", "UPDATE"):
                self._read_sources(clause)
            else:
                self._add_expressions(clause)
            if word == "WHERE":
                self._read_equations(clause)
            elif word == "SELECT":
                self.outputs = dict(_outputs(clause))

    def _add(self, words: Tree, *, is_expression: bool = False) -> "Block":
        self.inner.append(Block(words, self, is_expression))
        return self.inner[-1]

    def _without_ctes(self, words: Tree) -> Tree:
        if words[0] != "WITH":
            return words
        for place, word in enumerate(words):
            if word in _BEGINNINGS[:-1]:
                return words[place:]
            if _is_block(word):
                name = words[place - 2] if isinstance(words[place - 2], str) else words[place - 3]
                self.ctes[name] = Block(word, self)  # which may select from itself
                self.inner.append(self.ctes[name])
        raise AssertionError(words)

    def _read_sources(self, clause: Tree) -> None:
        is_source, place = True, 0
        while place < len(clause):
            word = clause[place]
            place += 1
            if word in (",", *_JOINS):
                is_source = True
            elif word == "ON":
                condition = _until(clause[place:], (",", *_JOINS))
                place += len(condition)
                self._add_expressions(condition)
                self._read_equations(condition)
            elif is_source and isinstance(word, list) and not _is_block(word):
                self._read_sources(word)
                is_source = False
            elif is_source:
                source: str | Block | None = self._add(word) if isinstance(word, list) else self._table(word)
                if place < len(clause) and isinstance(clause[place], list):
                    source, place = None, place + 1  # a function
                if place < len(clause) and clause[place] == "AS":
                    word, place = clause[place + 1], place + 2
                    place += place < len(clause) and isinstance(clause[place], list)  # the names of columns
                self.sources[_last(word)] = source
                is_source = False

    def _table(self, name: str) -> "str | Block":
        block: Block | None = self
        while block is not None:
            if name in block.ctes:
                return block.ctes[name]
            block = block.parent
        return _last(name)

    def _add_expressions(self, words: Tree) -> None:
        for word in words:
            if _is_block(word):
                self._add(word, is_expression=True)
            elif isinstance(word, list):
                self._add_expressions(word)

    def _read_equations(self, condition: Tree) -> None:
        if "OR" in condition:
            return
        for part in _split(condition, ("AND",)):
            if len(part) == 1 and isinstance(part[0], list) and not _is_block(part[0]):
                self._read_equations(part[0])
            elif len(part) == 3 and part[1] == "=" and all(isinstance(side, str) for side in part):
                self.equations.append((part[0], part[2]))
            elif len(part) == 3 and part[1] == "IN" and isinstance(part[0], str) and len(part[2]) == 1:
                self.equations.append((part[0], part[2][0]))

    def blocks(self) -> "Iterator[Block]":
        yield self
        for block in self.inner:
            yield from block.blocks()

    def place_of(self, name: str, *, within: bool) -> "Place | None":
        """Return the place of a column; ``None`` for a parameter, a function's, or if it is outside of an expression.

        :param within: whether to look only within the expression
        """
        alias, _, column = name.rpartition(".")
        alias, block = _last(alias), self
        while alias not in block.sources:
            if block.parent is None or (within and block.is_expression):
                return None
            block = block.parent
        source = block.sources[alias]
        if isinstance(source, Block):
            return source.place_of(source.outputs[column], within=within) if column in source.outputs else None
        return None if source is None else (id(block), alias, column)

    def names(self) -> set[str]:
        """Return the aliases that the block or blocks within it name."""
        return {_last(word.rpartition(".")[0]) for word in _flat(self.words) if "." in word}


def refusals(sql: str, columns: Mapping[str, str], groups: Mapping[str, Any], *, is_read: bool = False) -> list[str]:
    """Return the reasons why Citus refuses a statement.

    :param columns: the distribution columns of the distributed tables
    :param groups: what the tables that are colocated with each other have in common
    :param is_read: True for a program's own reads, which Citus plans otherwise than what writes or locks
    """
    tree = _tree(re.sub(r"IS (NOT )?DISTINCT FROM", "<>", _CAST.sub("", sql)))
    if tree[0] not in _BEGINNINGS:
        return []
    blocks = list(Block(tree).blocks())
    tables = {
        (id(block), alias, columns[source]): source
        for block in blocks
        for alias, source in block.sources.items()
        if isinstance(source, str) and source in columns
    }
    if not tables:
        return []
    found = []
    if any(cte.words[0] != "SELECT" for block in blocks for cte in block.ctes.values()):
        found.append("writes in WITH")
    if len(tables) > 1 and _lists_tuples(tree):
        found.append("lists tuples")
    bound = _bound(blocks)
    if tables.keys() <= bound:
        return found
    if any(word == "FOR" and following in ("UPDATE", "SHARE") for word, following in _pairs(tree)):
        found.append("locks many rows")
    if any(word == "WITH" and following == "RECURSIVE" for word, following in _pairs(tree)):
        found.append("is recursive")
    if not is_read:
        if not bound.isdisjoint(tables):
            found.append("correlates one row")
        elif len(set(_connected(blocks, tables))) > 1 or len({groups[table] for table in tables.values()}) > 1:
            found.append("joins what is not colocated")
    recurring = [block for block in blocks if block.sources and not _reads(block, columns, own=True)]
    for block in recurring:
        correlated = (inner for inner in block.inner if inner.is_expression and block.sources.keys() & inner.names())
        if any(_reads(inner, columns) for inner in correlated):
            found.append("correlates with what is not distributed")
    return found


def _bound(blocks: Sequence[Block]) -> set[Place]:
    """Return the columns that equal a parameter."""
    bound: set[Place] = set()
    while True:
        before = len(bound)
        for block in blocks:
            for equation in block.equations:
                places = {block.place_of(side, within=True) for side in equation}
                if any(map(_PARAMETER.match, equation)) or not places.isdisjoint(bound):
                    bound |= {place for place in places if place is not None}
        if len(bound) == before:
            return bound


def _connected(blocks: Sequence[Block], tables: Mapping[Place, str]) -> Iterator[Place]:
    """Yield, for each distribution column, one of those that it equals, the same for all of them."""
    first = {place: place for place in tables}
    for block in blocks:
        for equation in block.equations:
            left, right = (block.place_of(side, within=False) for side in equation)
            if left in first and right in first:
                old, new = first[right], first[left]
                first = {place: new if end == old else end for place, end in first.items()}
    yield from first.values()


def _reads(block: Block, columns: Mapping[str, str], *, own: bool = False) -> bool:
    """Return whether a block reads a distributed table; with ``own``, whether it does so in its FROM clause."""
    sources = list(block.sources.values())
    within = [source for source in sources if isinstance(source, Block) and source is not block] if own else block.inner
    return any(source in columns for source in sources if isinstance(source, str)) or any(
        _reads(each, columns, own=own) for each in within if each is not block
    )


def _tree(sql: str) -> Tree:
    stack: list[Tree] = [[]]
    for token in _TOKEN.findall(sql):
        if token == "(":
            stack.append([])
        elif token == ")":
            closed = stack.pop()
            stack[-1].append(closed)
        else:
            stack[-1].append(token.replace('"', ""))
    (tree,) = stack
    return tree


def _is_block(word: Any) -> bool:
    return isinstance(word, list) and bool(word) and word[0] in _BEGINNINGS


def _clauses(words: Tree) -> Iterator[tuple[str, Tree]]:
    if words[0] == "UPDATE":
        yield "UPDATE", _until(words[1:], _CLAUSES)
    rest = words
    while rest:
        word, *rest = rest
        clause = _until(rest, _CLAUSES)
        if word != "UPDATE":
            yield word, clause
        rest = rest[len(clause) :]


def _until(words: Tree, ends: Sequence[str]) -> Tree:
    return words[: next((place for place, word in enumerate(words) if word in ends), len(words))]


def _split(words: Tree, separators: Sequence[str]) -> Iterator[Tree]:
    while True:
        part = _until(words, separators)
        yield part
        if len(part) == len(words):
            return
        words = words[len(part) + 1 :]


def _outputs(clause: Tree) -> Iterator[tuple[str, str]]:
    for item in _split(clause, (",",)):
        if item and isinstance(item[0], str) and "." in item[0] and (len(item) == 1 or item[1] == "AS"):
            yield _last(item[-1]), item[0]


def _lists_tuples(tree: Tree) -> bool:
    lists = (following for word, following in pairwise(tree) if word == "IN" and not _is_block(following))
    if any(sum(isinstance(item, list) for item in values) > 1 for values in lists):
        return True
    return any(_lists_tuples(word) for word in tree if isinstance(word, list))


def _flat(tree: Tree) -> Iterator[str]:
    for word in tree:
        if isinstance(word, list):
            yield from _flat(word)
        else:
            yield word


def _pairs(tree: Tree) -> Iterator[tuple[str, str]]:
    return pairwise(_flat(tree))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
