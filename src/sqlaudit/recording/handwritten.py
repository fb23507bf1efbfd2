"""Which tracked table does hand-written SQL write? A cheap test of its keywords and names answers.

One pass divides the text into words, names and marks, and looks at each once, so the time is proportional to the
length of any text. Databases read some texts differently. If it is not known which database executes a text, every
reading counts.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from sqlalchemy import DDL, ClauseElement, Connection, Engine, SelectBase, Table, TextClause, UpdateBase
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.compiler import Compiled

from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.tracking.foreign_keys import untracked_sources
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.tables import known_metadata, tracked_table

_Name = tuple[str, ...]
"""The parts of a name, in lower case."""

# --- what is written --------------------------------------------------------------------------------------------

_TAKES_ROWS: Final = frozenset({"delete", "truncate", "replace", "merge", "alter"})
_VERB: Final = re.compile(
    r"(?:\b|\\[nrt])(?:insert|update|delete|replace|truncate|merge|copy|load|partition)\b", re.IGNORECASE
)
_READ_DIFFERENTLY: Final = re.compile(r"\\|#|/\*|--\S|\r(?!\n)")

_Where = Connection | Engine | None
"""What executes a text; ``None`` if it is unknown."""


def is_known_by_text(statement: Any) -> bool:
    """Return whether only the text of a statement shows what it writes.

    That is so if it was written by hand, was already compiled, or is of a class that the user compiles.
    """
    if not isinstance(statement, (ClauseElement, Compiled)) or isinstance(statement, (UpdateBase, SelectBase)):
        return False
    is_known = type(statement).__module__.startswith(("sqlalchemy.", "sqlaudit"))
    return not is_known or isinstance(statement, (TextClause, DDL, Compiled))


def report_text(statement: Any, *where: _Where) -> None:
    """Report a statement whose text writes a tracked table.

    :param where: what may execute it
    :raises CaptureError: the configuration says to raise
    """
    if isinstance(statement, (TextClause, Compiled)):
        report_sql(statement.text if isinstance(statement, TextClause) else str(statement), *where)
        return
    dialect = next((bind.dialect for bind in where if bind is not None), None)
    with suppress(CompileError):  # the user gets it on execution
        report_sql(str(statement.compile(dialect=dialect)), *where)


def table_written_by_text(sql: str, *where: _Where) -> Table | None:
    """Return a table that a text writes, if that changes tracked rows, as far as its words show.

    The table is tracked, or tracked rows follow its rows by foreign key and the statement may delete rows.

    :param where: what may execute the text; if empty, any database, with the tables in their own schemas
    """
    if _VERB.search(sql) is None:
        return None
    tables, text = _tables_by_name(), sql.lower()
    spellings = {spelling for name in tables for spelling in _spellings(name)}
    is_plain = len(text) == len(sql) and 'u&"' not in text
    if is_plain and not any(spelling in text for spelling in spellings):
        return None
    for verb, name in _names_written(sql, _places_of(spellings, text) if is_plain else None, where):
        for table in tables.get(name[-1], ()):
            is_elsewhere = len(name) > 1 and table.schema and table.schema.lower() != name[-2]
            if is_elsewhere and not _may_be_moved(table, where):
                continue
            if tracked_table(table) is not None or verb in _TAKES_ROWS:
                return table
    return None


def _may_be_moved(table: Table, where: Iterable[_Where]) -> bool:
    """Return whether a ``schema_translate_map`` may give a table another schema."""
    options = (None if bind is None else bind.get_execution_options() for bind in where)
    return any(
        bind_options is None or table.schema in (bind_options.get("schema_translate_map") or ())
        for bind_options in options
    )


def _tables_by_name() -> dict[str, list[Table]]:
    """Return the tracked tables and those that tracked rows follow, by their names in lower case."""
    tables: dict[str, list[Table]] = {}
    tracked = (source.live for metadata in known_metadata() for source in tracked_tables(metadata))
    for table in (*tracked, *(source.live for source in untracked_sources())):
        tables.setdefault(table.name.lower(), []).append(table)
    return tables


def _spellings(name: str) -> set[str]:
    """Return the ways to write a name: a quote in it is doubled if the same quote encloses it."""
    return {name, *(name.replace(quote, quote * 2) for quote in _QUOTES.values())}


def _places_of(names: Iterable[str], text: str) -> list[int]:
    """Return the positions in a text at which names begin, in ascending order."""
    return sorted(match.start() for name in names for match in re.finditer(re.escape(name), text))


def _names_written(sql: str, places: Sequence[int] | None, where: Iterable[_Where]) -> Iterator[tuple[str, _Name]]:
    """Yield the verb of each write, and the name of its table.

    :param places: where names of interest begin; ``None`` to read the whole text
    """
    dialects = {"" if bind is None else bind.dialect.name for bind in where}
    readings = [reading for reading in _LEXICAL_RULES if dialects <= reading.dialects] or _LEXICAL_RULES
    for reading in readings if _READ_DIFFERENTLY.search(sql) else readings[:1]:
        scan = _Scan()
        skip = None if places is None else _Skip(sql, reading, places, scan)
        yield from scan.run(_tokens(sql, reading, 0, len(sql), skip))


def report_sql(sql: str, *where: _Where) -> None:
    """Report the text of a statement that writes a tracked table.

    :param where: what may execute it
    :raises CaptureError: the configuration says to raise
    """
    table = table_written_by_text(sql, *where)
    if table is not None:
        kind = "tracked table" if tracked_table(table) is not None else "table that tracked rows refer to,"
        report_unrecorded(
            f"Hand-written SQL writes the {kind} {table.fullname!r}, and sqlaudit cannot record it: {sql[:200]!r}. "
            "Write it as insert(), update() or delete(), or call record_changes() afterwards.",
            table,
        )


# --- words, names and marks -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LexicalRules:
    """How a database reads strings and comments.

    :ivar dialects: SQLAlchemy's dialects for the databases that read this way
    :ivar escapes: True if a backslash in a string escapes the next character
    :ivar nests: True if comments nest, and if a carriage return also ends a one-line comment
    :ivar executes: True if comments that begin with ``!`` or ``M!`` are executed; then ``#`` also begins a comment, and
        ``--`` only does so before a blank
    """

    dialects: frozenset[str]
    escapes: bool = False
    nests: bool = False
    executes: bool = False


_MYSQL: Final = frozenset({"mariadb", "mysql"})
_LEXICAL_RULES: Final = (
    _LexicalRules(frozenset({"postgresql"}), nests=True),
    _LexicalRules(frozenset({"sqlite"})),  # as in the standard
    _LexicalRules(_MYSQL, escapes=True, executes=True),
    _LexicalRules(_MYSQL, executes=True),  # with NO_BACKSLASH_ESCAPES
)
_LETTERS: Final = r"\w$\x80-\U0010FFFF"  # databases take all non-ASCII characters for letters, unlike \w
_FIRST_LETTERS: Final = r"A-Za-z_\x80-\U0010FFFF"
_QUOTES: Final = {"single": "'", "double": '"', "back": "`", "unicode": '"'}
_COMMENT: Final = re.compile(r"/\*|\*/")
_EXECUTED: Final = r"/\*M?!(?!9{5})\d*"  # no server has version 99999


@cache
def _pattern(reading: _LexicalRules, *, words: bool = True) -> re.Pattern[str]:
    """Return the pattern of the tokens that matter; all other text is skipped.

    An unclosed string or comment ends with the text, and nothing is tried in two ways: so matching takes linear time.

    :param words: True to match words and all marks; False for strings, comments and ends of statements only
    """

    def quoted(quote: str, *, escapes: bool = False, name: str = "") -> str:
        parts = rf"{quote}{quote}|\\.|[^{quote}\\]" if escapes else rf"{quote}{quote}|[^{quote}]"
        return rf"{quote}{f'(?P<{name}>' if name else '(?:'}(?:{parts})*+){quote}?"

    comment = r"--[^\n\r]*" if reading.nests else r"--[^\n]*"
    if reading.executes:
        comment = r"--(?=\s|\Z)[^\n]* | \#[^\n]*"
    executed = rf"(?P<executed>{_EXECUTED}|\*/) |" if reading.executes else ""
    scanned_text = (
        rf"""
          \b[Uu]&{quoted('"', name="unicode")} | [:@%?]+[{_LETTERS}]*
        | \[(?P<bracket>[{_FIRST_LETTERS}][^\]\[\n]*+)\] | (?P<word>[{_LETTERS}]+) | (?P<mark>[.,;()*]|--)
        """
        if words
        else "(?P<mark>;)"
    )
    return re.compile(
        rf"""
          {comment} | {"" if words else "(?<="}\b[Ee]{"" if words else ")"}{quoted("'", escapes=True, name="escaped")}
        | {quoted("'", escapes=reading.escapes, name="single")} | {executed} (?P<comment>/\*)
        | (?P<dollar>(?<![{_LETTERS}])\$(?:[{_FIRST_LETTERS}][\w\x80-\U0010FFFF]*)?\$)
        | {quoted('"', escapes=reading.escapes, name="double")} | {quoted("`", name="back")}
        | {scanned_text}
        """,
        re.VERBOSE | re.DOTALL,
    )


def _tokens(
    sql: str,
    reading: _LexicalRules,
    place: int,
    end: int,
    skip: Callable[[int], int] | None = None,
    *,
    is_body: bool = False,
) -> Iterator[tuple[str, bool]]:
    """Yield the words, names and marks of a text, in lower case, each with whether it is a quoted name.

    :param skip: given where a statement begins, returns where the next statement of interest begins
    :param is_body: True in the body of a DO block, the only string that the database executes at once
    """
    search, text, is_block = _pattern(reading).search, ";", False
    if skip is not None:
        place = skip(place)
    while (match := search(sql, place, end)) is not None:
        kind, place = match.lastgroup, match.end()
        if kind == "word" or kind == "mark":
            before, text = text, match[kind].lower()
            is_block = text == "do" if before == ";" else is_block
            yield text, False
            if text == ";" and skip is not None:
                place = skip(place)
        elif kind == "comment":
            place = _end_of_comment(sql, place, end, nests=reading.nests)
        elif kind == "dollar":
            start, (closing, place) = place, _end_of_dollars(sql, match["dollar"], place, end)
            if is_block and not is_body:
                yield from _body(sql[start:closing], reading)
        elif kind == "single" or kind == "escaped":
            if text in _AMONG_VALUES:
                continue
            if is_block and not is_body:
                yield from _body(_unescaped(match[kind], is_escaped=kind == "escaped"), reading)
            elif kind == "single":
                text = "a name"  # SQLite takes a string for a name where it expects a name
                yield _unquoted(kind, match[kind]), True
        elif kind is not None and kind != "executed":
            text = "a name"
            yield _unquoted(kind, match[kind]), True


def _body(body: str, reading: _LexicalRules) -> Iterator[tuple[str, bool]]:
    """Yield the tokens in the body of a DO block."""
    yield ";", False
    yield from _tokens(body, reading, 0, len(body), is_body=True)
    yield ";", False


_AMONG_VALUES: Final = frozenset({"(", ","})
"""The marks that precede strings which are neither names nor bodies."""
_CODE_POINT: Final = re.compile(r"\\(?:\+(0[0-9a-f]{5}|10[0-9a-f]{4})|([0-9a-f]{4}))", re.IGNORECASE)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_BLANKS: Final = {"n": "\n", "r": "\r", "t": "\t"}


def _unquoted(kind: str, written: str) -> str:
    """Return a quoted name without its quoting, in lower case."""
    if kind == "unicode":
        written = _CODE_POINT.sub(lambda match: chr(int(match[1] or match[2], 16)), written)
    quote = _QUOTES.get(kind)
    return (written.replace(quote * 2, quote) if quote else written).lower()


def _unescaped(written: str, *, is_escaped: bool) -> str:
    """Return the text of a string; in an escaped string, a backslash escapes the next character."""
    text = written.replace("''", "'")
    return _ESCAPE.sub(lambda match: _BLANKS.get(match[1], match[1]), text) if is_escaped else text


def _end_of_comment(sql: str, place: int, end: int, *, nests: bool) -> int:
    depth = 1
    while depth and (match := _COMMENT.search(sql, place, end)) is not None:
        place = match.end()
        depth += -1 if match[0] == "*/" else nests
    return end if depth else place


def _end_of_dollars(sql: str, tag: str, place: int, end: int) -> tuple[int, int]:
    """Return where a dollar-quoted string ends, and where its closing tag ends."""
    closing = sql.find(tag, place, end)
    return (end, end) if closing < 0 else (closing, closing + len(tag))


_STOPS: Final = re.compile("""['"`;$/#-]""")
_HOLDS_OTHERS: Final = re.compile(
    rf"(?:\s|(?:--|\#)[^\n\r]*|{_EXECUTED}|/\*(?:[^*]|\*(?!/))*+\*/)*+(?:create|do)\b", re.IGNORECASE
)
"""Matches a statement that may contain other statements."""


@dataclass(frozen=True, slots=True)
class _Skip:
    """Skips statements that name no table of interest outside strings and comments, in a fraction of the time.

    A string counts if it begins with the name, since it may be a name itself.

    :ivar places: where the names of tables of interest begin
    :ivar scan: the scan that reads the words; nothing is skipped while it is in a definition
    """

    sql: str
    reading: _LexicalRules
    places: Sequence[int]
    scan: _Scan

    def __call__(self, start: int) -> int:
        sql, place, end, match = self.sql, start, len(self.sql), _pattern(self.reading, words=False).match
        if self.scan.defining is not None or _HOLDS_OTHERS.match(sql, start):
            return start
        while True:
            stop = _STOPS.search(sql, place)
            begins = end if stop is None else stop.start()
            if self._names(place, begins):
                return start
            if stop is None:
                return end
            found = match(sql, begins)
            kind, place = (None, begins + 1) if found is None else (found.lastgroup or "", found.end())
            if kind == "comment":
                place = _end_of_comment(sql, place, end, nests=self.reading.nests)
            elif kind == "dollar" and found is not None:
                _, place = _end_of_dollars(sql, found["dollar"], place, end)
            if kind in ("double", "back") and self._names(begins, place):
                return start
            if kind == "single" and self._names(begins, begins + 2):
                return start
            if kind == "mark":
                start = place
                if _HOLDS_OTHERS.match(sql, start):
                    return start

    def _names(self, start: int, end: int) -> bool:
        """Return whether a name of interest begins between two positions."""
        here = bisect_left(self.places, start)
        return here < len(self.places) and self.places[here] < end


# --- statements -------------------------------------------------------------------------------------------------

_VERBS: Final[dict[str, frozenset[str]]] = {
    verb: frozenset(words.split())
    for verb, words in {
        "insert": "or rollback abort fail replace ignore low_priority high_priority delayed into",
        "replace": "low_priority delayed into if not exists",
        "update": "or rollback abort fail replace ignore low_priority only",
        "delete": "low_priority quick ignore from only",
        "truncate": "table only",
        "merge": "into only",
        "copy": "binary",
        "load": "",
        "alter": "if exists only",
    }.items()
}
"""The verbs that begin a writing statement, each with the words that may precede the table's name."""
_NEVER_NAMES: Final = frozenset({"from", "into", "or", "table"})
"""Words that may precede a table's name, and that no database takes for a name."""
_OF_TABLE: Final = frozenset({"load", "alter"})
"""The verbs whose table follows the word TABLE."""
_EXPLAINS: Final = frozenset({"explain", "describe", "desc"})
_MENTIONS: Final = _EXPLAINS | {"grant", "revoke"}
"""The words that begin a statement which mentions another statement without executing it."""
_SAYS_WHETHER: Final = frozenset({"analyze", "false", "off", "0"})
_BEGINS: Final = frozenset({"", ";", "(", ")", "then", "else", "begin", "atomic", "loop", "repeat", "do", "in", "for"})
"""The words and marks after which a statement may begin."""
_BEGINS_IN: Final[dict[str, frozenset[str]]] = {
    "prepare": frozenset({"as"}),
    **dict.fromkeys((*_EXPLAINS, "analyze"), frozenset({"analyze", "verbose", "json", "extended"})),
}
"""Further words after which a statement may begin, by the first word of the one that contains it."""
_NO_NAMES: Final = frozenset(
    {
        *(
            "as",
            "cross",
            "default",
            "for",
            "force",
            "from",
            "full",
            "group",
            "ignore",
            "inner",
            "join",
            "left",
            "limit",
        ),
        *("natural", "on", "only", "order", "outer", "partition", "returning", "right", "select", "set"),
        *("straight_join", "tablesample", "to", "use", "using", "values", "when", "where", "with"),
    }
)
_MOVES_PARTITIONS: Final = frozenset({"truncate", "drop", "exchange", "attach", "detach", "discard", "import"})
_DEFINED: Final = frozenset({"trigger", "function", "procedure", "event", "package", "policy", "rule", "view"})
_ENDED: Final = frozenset({"if", "loop", "while", "repeat", "for"})


_OF_SEVERAL: Final = frozenset({"update", "delete", "truncate"})
_FUNCTIONS: Final = frozenset({"insert", "replace", "truncate"})


@dataclass(slots=True)
class _Named:
    """A table or column that a statement names, and the alias of the table."""

    name: _Name
    alias: str = ""


@dataclass(slots=True)
class _Statement:
    """What has been read so far of a statement that may write.

    :ivar targets: the names of the tables that it writes; they may be aliases of ``sources``
    :ivar sources: the tables that it reads
    :ivar columns: the columns that an UPDATE sets
    :ivar reads: the list that the next names belong to: ``targets``, ``sources`` or ``columns``; empty for none
    :ivar expects: True if a name comes next
    :ivar last: the last name, while further parts or an alias may follow
    :ivar writes: True if the statement is known to write
    :ivar passed: the last word that may precede a name, or be the name
    """

    verb: str
    targets: list[_Named] = field(default_factory=list)
    sources: list[_Named] = field(default_factory=list)
    columns: list[_Named] = field(default_factory=list)
    reads: str = "targets"
    expects: bool = True
    last: _Named | None = None
    writes: bool = True
    passed: str = ""

    def turn_to(self, reads: str) -> None:
        self.reads, self.expects, self.last = reads, bool(reads), None

    def add(self, name: str) -> None:
        self.expects = False
        self.last = _Named((name,))
        if self.reads:
            getattr(self, self.reads).append(self.last)

    def take_passed(self) -> None:
        """Take the passed word for the name if no name follows it: ``UPDATE only SET …``."""
        if self.expects and self.reads == "targets" and self.passed:
            self.add(self.passed)
        self.passed = ""

    def written(self) -> Iterator[tuple[str, _Name]]:
        """Yield the verb and the name of each table that the statement writes."""
        self.take_passed()
        aliases = {source.alias: source.name for source in self.sources if source.alias}
        set_by = {column.name[-2] if len(column.name) > 1 else "" for column in self.columns}
        if not set_by <= {target.alias or target.name[-1] for target in self.targets}:
            set_by = set()  # it is unknown which tables the columns are in
        for target in self.targets if self.writes else ():
            if not set_by or (target.alias or target.name[-1]) in set_by:
                yield self.verb, aliases.get(target.name[0], target.name) if len(target.name) == 1 else target.name


class _Scan:
    """Reads the words of a text, statement by statement.

    :ivar open: the statement in each open parenthesis, or ``None`` where there is no writing statement
    :ivar before: the word or mark before the current one
    :ivar first: the first word of the current statement
    :ivar is_mentioned: True if the statement is not executed, but explained, for instance
    :ivar replaces: True after CREATE OR REPLACE
    :ivar handles: True while a handler is declared, whose statement follows the conditions
    :ivar defining: the number of open blocks and parentheses in a definition, of a trigger for instance; ``None``
        outside of definitions
    :ivar found: the verbs and tables of the writes that have been read
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, _Name]] = []
        self._begin()

    def _begin(self) -> None:
        self.open: list[_Statement | None] = [None]
        self.before = self.first = ""
        self.is_mentioned = self.replaces = self.handles = False
        self.defining: int | None = None

    def run(self, tokens: Iterator[tuple[str, bool]]) -> Iterator[tuple[str, _Name]]:
        """Yield the verb of each write, and the name of its table."""
        for text, is_quoted in tokens:  # an option may be quoted
            is_name = is_quoted and not (self.first in _EXPLAINS and text in _SAYS_WHETHER)
            if self.defining is not None:
                self._define(text, is_name)
            elif is_name:
                self._name(text)
            elif (meet := _MARKS.get(text)) is not None:
                meet(self)
            else:
                self._word(text)
            self.before = "a name" if is_name else text
            if self.found:
                yield from self.found
                self.found.clear()
        self._end()
        yield from self.found

    # -- marks

    def _end(self) -> None:
        for place, statement in enumerate(self.open):
            if statement is not None and (place == 0 or self.open[place - 1] is not statement):
                self.found.extend(statement.written())
        self._begin()

    def _open(self) -> None:
        statement = self.open[-1]
        if statement is not None and statement.verb in ("insert", "replace"):
            statement.take_passed()
        if statement is not None and statement.expects:
            if statement.reads == "columns":  # SET (a, b) = …
                statement.add("")
                statement = None
            elif self.before == statement.verb and statement.verb in _FUNCTIONS:
                self.open[-1] = statement = None
            self.open.append(statement)  # a table or a join in parentheses
        else:
            self.open.append(None)

    def _close(self) -> None:
        if len(self.open) == 1:
            return
        statement, around = self.open.pop(), self.open[-1]
        if statement is not None and statement is not around:
            self.found.extend(statement.written())
        if around is not None and around.expects:
            around.expects, around.last = False, None

    def _comma(self) -> None:
        statement = self.open[-1]
        if statement is not None and statement.reads and statement.verb in _OF_SEVERAL:
            statement.take_passed()
            statement.expects, statement.last = True, None

    def _pass(self) -> None:
        pass

    # -- words and names

    def _word(self, word: str) -> None:
        statement = self.open[-1]
        if self.before in ("", ";"):
            self.first, self.is_mentioned = word, word in _MENTIONS
        if self.first == "create" and self._defines(word):
            self.defining = 0
        elif self.first in _EXPLAINS and word in _SAYS_WHETHER:
            self._explain(word)
        elif self.before == ".":
            self._name(word)
        elif statement is not None and statement.expects and word in _VERBS[statement.verb]:
            statement.passed = "" if word in _NEVER_NAMES else word
        elif word in _VERBS and self._may_begin():
            if statement is not None and (len(self.open) == 1 or self.open[-2] is not statement):
                self.found.extend(statement.written())
            self.open[-1] = _Statement(word, expects=word not in _OF_TABLE, writes=word not in ("copy", "alter"))
            self.handles = False
        elif statement is not None:
            self._continue(statement, word)
        elif word == "for" and self.before == "handler":
            self.handles = True

    def _may_begin(self) -> bool:
        if self.is_mentioned:
            return False
        return self.handles or self.before in _BEGINS or self.before in _BEGINS_IN.get(self.first, ())

    def _explain(self, word: str) -> None:
        """Note whether an explained statement is also executed."""
        if word == "analyze":
            self.is_mentioned = False
        elif self.before == "analyze":
            self.is_mentioned = True

    def _defines(self, word: str) -> bool:
        """Return whether a CREATE defines code that is executed later; note the table that it replaces."""
        self.replaces = self.replaces or word == "replace"
        if word == "table":
            self.first = word
            self.open[-1] = _Statement("replace") if self.replaces else None
        return word in _DEFINED

    def _continue(self, statement: _Statement, word: str) -> None:
        step = _STEPS.get(word)
        if step is not None or word in _NO_NAMES:
            statement.take_passed()
        if step is not None:
            step(statement)
        elif word == "partition" and statement.verb == "alter":
            statement.writes = statement.writes or self.before in _MOVES_PARTITIONS
            statement.expects = self.before == "attach"
        elif word not in _NO_NAMES:
            self._name(word)
        elif word != "as" and statement.verb not in _OF_TABLE:
            if self.before == "(":
                self.open[-1] = None  # a subquery
            elif statement.expects and statement.reads == "targets" and self.before != "insert":
                statement.add(word)  # a table of that name; in a MERGE, INSERT VALUES names none
                return
            statement.expects, statement.last = False, None

    def _name(self, text: str) -> None:
        """Read a name, the next part of a name, or an alias."""
        statement = self.open[-1]
        last = statement and statement.last
        if last and self.before == ".":
            last.name = (*last.name, text)
        elif statement and statement.expects:
            statement.add(text)
        elif statement and last:
            statement.last = None
            if statement.reads != "columns":
                last.alias = text

    # -- definitions

    def _define(self, text: str, is_name: bool) -> None:
        """Skip a definition, which the database does not execute yet, to its end."""
        assert self.defining is not None
        if is_name:
            return
        if text == "(" or (text in ("begin", "case") and self.before != "end"):
            self.defining += 1
        elif text in (")", "end"):
            self.defining -= 1
        elif self.before == "end" and text in _ENDED:
            self.defining += 1  # the beginnings of IF, LOOP and so on are not counted
        elif text == ";" and self.defining <= 0:
            self._begin()


def _from(statement: _Statement) -> None:
    if statement.verb == "delete" and statement.reads == "targets":
        statement.turn_to("sources")
    else:
        statement.writes = statement.writes or statement.verb == "copy"
        statement.turn_to("")


def _using(statement: _Statement) -> None:
    if statement.verb == "delete" and statement.reads == "targets":
        statement.turn_to("sources")
    elif statement.verb == "merge":
        statement.turn_to("")
    else:  # USING of a join
        statement.last = None


def _set(statement: _Statement) -> None:
    if statement.expects and statement.reads == "targets" and statement.verb != "update":
        statement.add("set")
    elif statement.expects and statement.reads == "columns" and not statement.targets:  # UPDATE set SET …
        statement.targets.append(_Named(("set",)))
    else:
        statement.turn_to("columns" if statement.verb == "update" and statement.reads == "targets" else "")


def _join(statement: _Statement) -> None:
    statement.expects, statement.last = statement.reads in ("targets", "sources"), None


def _table(statement: _Statement) -> None:
    if statement.verb in _OF_TABLE:
        statement.expects = True


def _stop(statement: _Statement) -> None:
    statement.turn_to("")


_STEPS: Final[dict[str, Callable[[_Statement], None]]] = {
    "from": _from,
    "using": _using,
    "set": _set,
    "table": _table,
    **dict.fromkeys(("join", "straight_join"), _join),
    **dict.fromkeys(("where", "returning", "order", "limit", "to", "of"), _stop),
}
_MARKS: Final[dict[str, Callable[[_Scan], None]]] = {
    "(": _Scan._open,
    ")": _Scan._close,
    ",": _Scan._comma,
    ";": _Scan._end,
    ".": _Scan._pass,
    "*": _Scan._pass,
    "--": _Scan._pass,
}
