"""Who and why: the audit context, and what of it reaches the versions."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import itertools
import threading
import types
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlaudit
from sqlaudit import (
    ActorType,
    AuditContext,
    AuditContextManager,
    ContextError,
    SQLAuditConfig,
    clear_audit_context,
    get_audit_context,
    set_audit_context,
    set_config,
)

USER = UUID("0193d0e5-c6f9-7b0a-8f00-112233445566")


def contents() -> tuple[object, ...]:
    context = get_audit_context()
    return context.user_id, context.reason, context.impersonated_by, context.extra


def test_it_is_empty_at_first_and_after_clearing():
    assert contents() == (None, None, None, None)
    set_audit_context("u", "r", "i", {"a": 1})
    assert contents() == ("u", "r", "i", {"a": 1})
    clear_audit_context()
    assert get_audit_context() == AuditContext()


def test_setting_replaces_the_whole_context():
    set_audit_context("u", "r", "i", {"a": 1})
    set_audit_context(reason="other")
    assert contents() == (None, "other", None, None)


def test_an_inner_context_overlays_the_outer_one_and_extras_merge():
    with AuditContextManager(user_id="u", reason="r", extra={"a": 1, "b": 1}):
        with AuditContextManager(reason="inner", extra={"b": 2}) as inner:
            assert inner is get_audit_context()
            assert contents() == ("u", "inner", None, {"a": 1, "b": 2})
        with AuditContextManager(impersonated_by="i", extra=[1]):
            assert contents() == ("u", "r", "i", [1])
        assert contents() == ("u", "r", None, {"a": 1, "b": 1})
    assert contents() == (None,) * 4


def test_the_outer_context_returns_after_an_exception_and_after_a_set_inside():
    set_audit_context("outer")

    @AuditContextManager(user_id="inner")
    def fail():
        set_audit_context("set inside")
        raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert contents()[0] == "outer"


def test_one_manager_can_be_entered_again_and_within_itself():
    manager = AuditContextManager(user_id="u")
    with manager, AuditContextManager(user_id="v"), manager:
        assert contents()[0] == "u"
    assert contents()[0] is None


def test_as_a_decorator_each_call_has_the_context():
    @AuditContextManager(user_id=7, reason="r", extra={"depth": 1})
    def visit(depth):
        assert contents() == ("7", "r", None, {"depth": 1})
        return depth and visit(depth - 1)

    assert visit(2) == 0
    assert contents() == (None,) * 4


def test_a_generator_that_ends_in_another_context_leaves_the_surrounding_one():
    """As the dependencies of web frameworks do: entered in one copy of the variables, left in another."""

    def dependency():
        with AuditContextManager(user_id="request"):
            yield get_audit_context().user_id

    generator = dependency()
    assert contextvars.copy_context().run(next, generator) == "request"
    assert contextvars.copy_context().run(next, generator, "done") == "done"
    assert contents()[0] is None


# --- blocks of tasks, threads and generators --------------------------------------------------------------------

IMPORTING = AuditContextManager(reason="import")
"""One of a module, as programs have it."""


def test_a_manager_that_tasks_share_never_swaps_their_users():
    async def request(user, rounds):
        set_audit_context(user)
        for _ in range(rounds):
            with IMPORTING:
                await asyncio.sleep(0)
                assert contents()[:2] == (user, "import")
            assert contents()[:2] == (user, None)
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(request(f"user {n}", n) for n in range(1, 9)))

    asyncio.run(main())


def test_a_manager_that_threads_share_never_swaps_their_users():
    barrier = threading.Barrier(4)
    failed = []

    def work(user):
        set_audit_context(user)
        for _ in range(50):
            with IMPORTING, AuditContextManager(extra=user):
                barrier.wait()
                if contents() != (user, "import", None, user):
                    failed.append(contents())
            if contents()[:2] != (user, None):
                failed.append(contents())

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_that_end_in_any_order_leave_nothing_behind(order):
    def block(n, shared):
        with shared, AuditContextManager(user_id=f"u{n}", extra={f"of {n}": n}):
            yield

    set_audit_context("outer", extra={"outer": 0})
    blocks = [block(n, IMPORTING) for n in range(3)]
    for each in blocks:
        next(each)
    left = set(range(3))
    for n in order:
        blocks[n].close()
        left.discard(n)
        user = f"u{max(left)}" if left else "outer"
        assert contents() == (user, "import" if left else None, None, {"outer": 0} | {f"of {n}": n for n in left})


def test_async_blocks_that_end_in_another_order_leave_nothing_behind():
    async def block(user):
        async with AuditContextManager(user_id=user) as context:
            assert context is get_audit_context()
            yield

    async def main():
        one, two = block("one"), block("two")
        await anext(one)
        await anext(two)
        await one.aclose()
        assert contents()[0] == "two"
        await two.aclose()
        assert contents() == (None,) * 4

    asyncio.run(main())


def test_a_context_that_was_set_within_a_block_stays_until_that_block_ends():
    outer, inner = AuditContextManager(user_id="outer"), AuditContextManager(reason="inner")
    outer.__enter__()
    inner.__enter__()
    set_audit_context("set")
    outer.__exit__(None, None, None)
    assert contents()[:2] == ("set", None)
    inner.__exit__(None, None, None)
    assert contents() == (None,) * 4


NIGHTLY = AuditContextManager(user_id="cron", reason="nightly")


def test_a_decorated_coroutine_function_has_the_context_while_it_runs():
    @NIGHTLY
    async def job(users):
        await asyncio.sleep(0)
        users.append(contents()[0])
        if len(users) == 2:
            raise LookupError

    async def main():
        set_audit_context("caller")
        users = []
        task = asyncio.ensure_future(job(users))
        assert contents()[0] == "caller"
        await task
        with pytest.raises(LookupError):
            await job(users)
        assert users == ["cron", "cron"]
        assert contents()[0] == "caller"

    assert inspect.iscoroutinefunction(job)
    asyncio.run(main())


def test_a_decorated_generator_has_the_context_whenever_it_runs_and_its_caller_never():
    ended = []

    @NIGHTLY
    def rows():
        try:
            got = yield contents()[0]
            try:
                yield contents()[0], got
            except LookupError:
                yield contents()[0], "caught"
            return contents()[0]
        finally:
            ended.append(contents()[0])

    set_audit_context("caller")
    generator = rows()
    assert next(generator) == "cron"
    assert contents()[0] == "caller"
    assert generator.send(5) == ("cron", 5)
    assert generator.throw(LookupError) == ("cron", "caught")
    with pytest.raises(StopIteration) as end:
        next(generator)
    assert end.value.value == "cron"
    other = rows()
    next(other)
    other.close()
    assert ended == ["cron", "cron"]
    assert contents()[0] == "caller"


def test_a_decorated_asynchronous_generator_has_the_context_whenever_it_runs_and_its_caller_never():
    ended = []

    @NIGHTLY
    async def rows():
        try:
            got = yield contents()[0]
            await asyncio.sleep(0)
            try:
                yield contents()[0], got
            except LookupError:
                yield contents()[0], "caught"
        finally:
            await asyncio.sleep(0)
            ended.append(contents()[0])

    async def main():
        set_audit_context("caller")
        generator = rows()
        assert await anext(generator) == "cron"
        assert contents()[0] == "caller"
        assert await generator.asend(5) == ("cron", 5)
        assert await generator.athrow(LookupError) == ("cron", "caught")
        assert [each async for each in generator] == []
        other = rows()
        await anext(other)
        await other.aclose()
        assert ended == ["cron", "cron"]
        assert contents()[0] == "caller"

    asyncio.run(main())


async def coroutine():
    await asyncio.sleep(0)
    return contents()[0]


def generator():
    yield contents()[0]
    yield contents()[0]


async def asynchronous_generator():
    yield contents()[0]
    await asyncio.sleep(0)
    yield contents()[0]


@types.coroutine
def generator_that_is_awaited():
    yield from asyncio.sleep(0).__await__()
    return contents()[0]


@functools.wraps(coroutine)
def wrapper_of_a_coroutine_function():
    return coroutine()


class Asynchronous:
    async def __call__(self):
        return await coroutine()


class Generating:
    def __call__(self):
        yield from generator()


@contextlib.contextmanager
def entered():
    yield contents()[0]


@contextlib.asynccontextmanager
async def entered_asynchronously():
    await asyncio.sleep(0)
    yield contents()[0]


class Methods:
    @NIGHTLY
    @classmethod
    def of_the_class(cls):
        assert cls is Methods
        return contents()[0]

    @classmethod
    @NIGHTLY
    def of_the_class_above(cls):
        return contents()[0]

    @NIGHTLY
    @staticmethod
    async def static():
        return await coroutine()

    @property
    @NIGHTLY
    def property(self):
        return contents()[0]

    @NIGHTLY
    def __call__(self):
        return contents()[0]


DECORATED = {
    "a coroutine function": NIGHTLY(coroutine),
    "a partial of it": NIGHTLY(functools.partial(coroutine)),
    "a lambda that calls it": NIGHTLY(lambda: coroutine()),
    "a partial of that": NIGHTLY(functools.partial(lambda: coroutine())),
    "a function that wraps it": NIGHTLY(wrapper_of_a_coroutine_function),
    "an object with an async __call__": NIGHTLY(Asynchronous()),
    "a partial of such an object": NIGHTLY(functools.partial(Asynchronous())),
    "types.coroutine": NIGHTLY(generator_that_is_awaited),
    "types.coroutine by a lambda": NIGHTLY(lambda: generator_that_is_awaited()),
    "a generator function": NIGHTLY(generator),
    "a partial of a generator function": NIGHTLY(functools.partial(generator)),
    "a lambda that calls a generator function": NIGHTLY(lambda: generator()),
    "an object whose __call__ generates": NIGHTLY(Generating()),
    "an asynchronous generator function": NIGHTLY(asynchronous_generator),
    "a lambda that calls one": NIGHTLY(lambda: asynchronous_generator()),
    "a context manager": NIGHTLY(entered),
    "an asynchronous context manager": NIGHTLY(entered_asynchronously),
    "a class method": Methods.of_the_class,
    "a class method of an object": Methods().of_the_class,
    "a class method, written above": Methods.of_the_class_above,
    "a static method": Methods.static,
    "a static method of an object": Methods().static,
    "a property": lambda: Methods().property,
    "__call__": Methods(),
    "a function that makes a task": NIGHTLY(lambda: asyncio.ensure_future(coroutine())),
}


@pytest.mark.parametrize("kind", DECORATED)
def test_whatever_is_decorated_runs_in_the_context(kind):
    async def everything(result):
        if inspect.isawaitable(result):
            return {await result}
        if inspect.isasyncgen(result):
            return {each async for each in result}
        if hasattr(result, "__aenter__"):
            async with result as value:
                return {value}
        if hasattr(result, "__enter__"):
            with result as value:
                return {value}
        return set(result) if inspect.isgenerator(result) else {result}

    async def main():
        set_audit_context("caller")
        result = DECORATED[kind]()
        assert contents()[0] == "caller"
        assert await everything(result) == {"cron"}
        assert contents()[0] == "caller"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("is_of_kind", "function"),
    [
        (inspect.iscoroutinefunction, coroutine),
        (inspect.iscoroutinefunction, Asynchronous()),
        (inspect.isgeneratorfunction, generator),
        (inspect.isasyncgenfunction, asynchronous_generator),
    ],
    ids=["coroutine", "object", "generator", "asynchronous generator"],
)
def test_a_decorated_function_is_still_of_its_kind(is_of_kind, function):
    assert is_of_kind(NIGHTLY(function))


def test_what_is_returned_is_the_same_object_where_nothing_of_it_runs_later():
    for thing in (None, [1], iter([1]), contextlib.nullcontext(), Asynchronous()):
        assert NIGHTLY(lambda thing=thing: thing)() is thing


@pytest.mark.parametrize(
    "thing",
    [Methods, property(contents), functools.cached_property(contents), None],
    ids=["class", "property", "cached property", "none"],
)
def test_what_is_no_function_is_refused_at_its_decoration(thing):
    with pytest.raises(ContextError, match="decorates functions"):
        NIGHTLY(thing)


def test_what_a_decorated_generator_makes_of_the_context_lasts_while_it_is_suspended_and_only_within_it():
    @NIGHTLY
    def rows(number):
        set_audit_context(f"set {number}")
        yield contents()[:2]
        yield contents()[:2]
        with AuditContextManager(reason=f"block {number}"):
            yield contents()[:2]
            yield contents()[:2]
        yield contents()[:2]

    set_audit_context("caller", "why")
    generators = [rows(0), rows(1)]
    for reason in (None, None, "block", "block", None):
        for number, each in enumerate(generators):
            assert next(each) == (f"set {number}", reason and f"block {number}")
            assert contents()[:2] == ("caller", "why")


def test_what_a_decorated_asynchronous_generator_makes_of_the_context_is_kept_within_it():
    ended = []

    @NIGHTLY
    async def rows(number):
        async with AuditContextManager(reason=f"block {number}"):
            try:
                yield contents()[:2]
                await asyncio.sleep(0)
                yield contents()[:2]
            finally:
                await asyncio.sleep(0)
                ended.append(contents()[:2])
        yield contents()[:2]

    async def main():
        set_audit_context("caller", "why")
        generators = [rows(0), rows(1)]
        for reason in ("block", "block", "nightly"):
            for number, each in enumerate(generators):
                assert await anext(each) == ("cron", reason if reason == "nightly" else f"block {number}")
                assert contents()[:2] == ("caller", "why")
        third = rows(2)
        await anext(third)
        await third.aclose()
        assert ended == [("cron", f"block {number}") for number in range(3)]
        assert contents()[:2] == ("caller", "why")

    asyncio.run(main())


def test_around_a_decorated_generator_is_always_the_context_of_whoever_resumes_it():
    @AuditContextManager(reason="decorated")
    def rows():
        with AuditContextManager(extra=[1]):
            while True:
                yield contents()

    each = rows()
    for user in ("ana", "ben"):
        with AuditContextManager(user_id=user):
            assert next(each) == (user, "decorated", None, [1])
    each.close()
    assert contents() == (None,) * 4


def test_a_block_that_ends_within_the_step_of_a_decorated_generator_has_ended_for_its_caller():
    outer = AuditContextManager(user_id="outer")

    @NIGHTLY
    def rows():
        outer.__exit__(None, None, None)
        yield contents()[0]

    outer.__enter__()
    assert list(rows()) == ["cron"]
    assert contents()[0] is None


# --- values -----------------------------------------------------------------------------------------------------


def test_what_is_read_of_a_context_does_not_change_it():
    given = {"list": [1], "dict": {"a": 1}}
    set_audit_context(extra=given)
    given["list"].append(2)
    get_audit_context().extra["dict"]["b"] = 2
    with AuditContextManager(extra={"inner": [1]}) as inner:
        inner.extra["inner"].append(2)
        assert get_audit_context().extra == {"list": [1], "dict": {"a": 1}, "inner": [1]}
    assert get_audit_context() == AuditContext(extra={"list": [1], "dict": {"a": 1}})
    assert get_audit_context() != AuditContext(extra={"list": [2], "dict": {"a": 1}})
    assert repr(AuditContext(extra=[1])).endswith("extra=[1])")


@pytest.mark.parametrize("name", ["user_id", "impersonated_by"])
def test_an_empty_id_is_none(name):
    with AuditContextManager(user_id="u", impersonated_by="i"), AuditContextManager(**{name: ""}):
        assert contents() == ("u", None, "i", None)
    set_audit_context(**{name: ""})
    assert get_audit_context() == AuditContext()


def test_threads_do_not_see_each_others_context():
    barrier, seen = threading.Barrier(4), {}

    def work(name):
        seen[name, "before"] = contents()[0]
        set_audit_context(name)
        barrier.wait()
        seen[name, "after"] = contents()[0]

    set_audit_context("main")
    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {
        (f"t{n}", when): f"t{n}" if when == "after" else None for n in range(4) for when in ("before", "after")
    }
    assert contents()[0] == "main"


def test_tasks_inherit_the_context_and_keep_their_changes_to_themselves():
    @AuditContextManager(reason="decorated")
    def reason():
        return contents()[:2]

    async def work(name):
        inherited = contents()[0]
        with AuditContextManager(user_id=name):
            await asyncio.sleep(0)
            return inherited, reason()

    async def main():
        set_audit_context("main")
        results = await asyncio.gather(*(work(f"t{n}") for n in range(5)))
        return results, contents()[0]

    results, after = asyncio.run(main())
    assert results == [("main", (f"t{n}", "decorated")) for n in range(5)]
    assert after == "main"


@pytest.mark.parametrize("give", [set_audit_context, AuditContextManager, AuditContext])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"user_id": "x" * 256}, "user_id has 256 characters"),
        ({"impersonated_by": "x" * 256}, "impersonated_by has 256 characters"),
        ({"user_id": True}, "user_id is True"),
        ({"user_id": 1.5}, "user_id is 1.5"),
        ({"user_id": b"u"}, "user_id is b'u'"),
        ({"reason": 5}, "reason is 5"),
        ({"extra": {1, 2}}, "extra cannot be stored as JSON"),
        ({"extra": object()}, "extra cannot be stored as JSON"),
        ({"extra": {"a": float("nan")}}, "extra cannot be stored as JSON"),
        ({"extra": {"a": ["\\\0"]}}, "extra cannot be stored as JSON"),
        ({"extra": {"\ud800": 1}}, "extra cannot be stored as JSON"),
        ({"reason": "\0"}, "reason is .*, and databases cannot store one of its characters"),
        ({"reason": "\ud800"}, "reason is .*, and databases cannot store one of its characters"),
        ({"user_id": "a\0"}, "user_id is .*, and databases cannot store one of its characters"),
    ],
    ids=[
        *("long user", "long impersonator", "bool", "float", "bytes", "reason", "set", "object", "nan"),
        *("nul in extra", "surrogate in extra", "nul in reason", "surrogate in reason", "nul in user"),
    ],
)
def test_what_cannot_be_stored_raises_when_it_is_given(give, bad, message):
    set_audit_context("before")
    with pytest.raises(ContextError, match=message):
        give(**bad)
    assert contents()[0] == "before"


def test_text_that_only_looks_like_an_escaped_nul_is_accepted():
    with AuditContextManager(extra={"path": "C:\\u0000"}) as context:
        assert context.extra == {"path": "C:\\u0000"}


def test_extra_is_a_copy_of_what_was_given():
    extra = {"ids": [1]}
    set_audit_context(extra=extra)
    extra["ids"].append(2)
    assert contents()[3] == {"ids": [1]}


# --- in the versions --------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table(user_id_field="editor")
class Page(Base):
    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))
    editor: Mapped[UUID | None]
    owner: Mapped[int | None]


@sqlaudit.track_table()
class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table(user_id_field="writer")
class Letter(Base):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    writer: Mapped[str | None] = mapped_column(sa.String(50))


def users(session: Session, model: type, key: int = 1) -> list[str | None]:
    return [version.audit_changed_by for version in sqlaudit.versions_of(session, model, key)]


@pytest.mark.parametrize(
    ("context", "field", "callback", "fallback", "expected"),
    [
        ("context", USER, "callback", 5, "context"),
        (None, USER, "callback", 5, str(USER)),
        (None, None, "callback", 5, "callback"),
        (None, None, USER, 5, str(USER)),
        (None, None, None, 5, "5"),
        (None, None, None, None, None),
        ("", None, "", 5, "5"),
    ],
)
def test_the_user_is_that_of_the_context_the_row_the_callback_or_the_users_column(
    session, context, field, callback, fallback, expected
):
    set_config(SQLAuditConfig(get_user_id_callback=lambda: callback, user_model_user_id_field="owner"))
    set_audit_context(context)
    page = Page(id=1, text="a", editor=field, owner=fallback)
    session.add(page)
    session.commit()
    page.text = "b"
    session.commit()
    session.delete(page)
    session.commit()
    assert users(session, Page) == [expected] * 3


def test_a_model_without_the_users_column_takes_the_callback_or_nobody(session):
    set_config(SQLAuditConfig(user_model_user_id_field="owner"))
    session.add(Note(id=1))
    session.commit()
    set_config(SQLAuditConfig(user_model_user_id_field="owner", get_user_id_callback=lambda: 9))
    session.add(Note(id=2))
    session.commit()
    assert (users(session, Note), users(session, Note, 2)) == ([None], ["9"])


def test_an_empty_user_id_of_a_row_is_none(session):
    set_config(SQLAuditConfig(get_user_id_callback=lambda: 9))
    letter = Letter(id=1, writer="")
    session.add(letter)
    session.commit()
    letter.writer = "ana"
    session.commit()
    session.execute(sa.update(Letter).values(writer=""))
    session.commit()
    assert users(session, Letter) == ["9", "ana", "9"]


def test_a_callback_that_gives_no_user_id_fails_the_flush(session):
    set_config(SQLAuditConfig(get_user_id_callback=lambda: "x" * 256))
    session.add(Note(id=1))
    with pytest.raises(ContextError, match="get_user_id_callback"):
        session.flush()


@pytest.mark.parametrize("user", ["u", 7, USER], ids=str)
def test_everything_is_stored_and_nothing_is_stored_as_none(session, user):
    with AuditContextManager(user, "why", 0, {"ip": "::1", "n": [1, None]}):
        session.add(Note(id=1))
        session.commit()
    session.get(Note, 1).text = "x"
    session.commit()
    first, second = sqlaudit.versions_of(session, Note, 1)
    assert (first.audit_changed_by, first.audit_reason, first.audit_impersonated_by, first.audit_extra) == (
        str(user),
        "why",
        "0",
        {"ip": "::1", "n": [1, None]},
    )
    empty = (second.audit_changed_by, second.audit_reason, second.audit_impersonated_by, second.audit_extra)
    assert empty == (None,) * 4
    history = sqlaudit.history_of(Note)
    assert session.scalars(sa.select(history.audit_version).where(history.audit_extra.is_(None))).all() == [2]
    changes = sqlaudit.get_resource_changes(Note, session, filter_user_ids=user)
    assert {change.version for change in changes} == {1}


def test_flush_commit_and_rollback_leave_the_context_alone(session):
    set_audit_context("u", "r")
    for number, end in enumerate((session.flush, session.rollback, session.commit), start=1):
        session.add(Note(id=number))
        end()
        assert contents()[:2] == ("u", "r")
    session.add(Note(id=3))
    with pytest.raises(sa.exc.IntegrityError):
        session.flush()
    assert contents()[:2] == ("u", "r")


# --- the kind of actor ------------------------------------------------------------------------------------------


def actor() -> tuple[object, ...]:
    context = get_audit_context()
    return context.user_id, context.actor_type, context.on_behalf_of, context.run_id


def test_what_is_told_of_the_actor_is_kept_in_extra():
    set_audit_context("triage", extra={"model": "m"}, actor_type="agent", on_behalf_of=USER, run_id=7)
    assert actor() == ("triage", ActorType.AGENT, str(USER), "7")
    told = {"actor_type": "agent", "on_behalf_of": str(USER), "run_id": "7"}
    assert get_audit_context().extra == {"model": "m"} | told
    assert AuditContext("triage", extra=told).actor_type is ActorType.AGENT
    set_audit_context("ana")
    assert (actor(), get_audit_context().extra) == (("ana", None, None, None), None)


def test_an_inner_context_keeps_what_is_told_of_the_actor_unless_it_tells_otherwise():
    with AuditContextManager("triage", actor_type="agent", run_id="r-1", extra={"a": 1}):
        with AuditContextManager(reason="ticket", run_id="r-2", on_behalf_of="", extra={"b": 2}):
            assert actor() == ("triage", "agent", None, "r-2")
            assert get_audit_context().extra == {"a": 1, "b": 2, "actor_type": "agent", "run_id": "r-2"}
        assert actor() == ("triage", "agent", None, "r-1")


def test_who_has_a_name_is_not_anonymous():
    with AuditContextManager(actor_type="anonymous", run_id="r"):
        with AuditContextManager(reason="sign up"):
            assert actor() == (None, "anonymous", None, "r")
        with AuditContextManager("ana"):
            assert actor() == ("ana", None, None, "r")
        with AuditContextManager("ana", actor_type="user"):
            assert actor() == ("ana", "user", None, "r")
    with AuditContextManager(actor_type="anonymous"), AuditContextManager("ana"):
        assert get_audit_context() == AuditContext("ana")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actor_type": "robot"}, "actor_type is 'robot'. Give one of user, service, agent, system, anonymous."),
        ({"actor_type": ""}, "actor_type is ''"),
        ({"actor_type": ["agent"]}, r"actor_type is \['agent'\]"),
        ({"on_behalf_of": 1.5}, "on_behalf_of is 1.5. Give a str, an int or a UUID."),
        ({"run_id": "a\0"}, "run_id is .*Leave that character out"),
        ({"run_id": "r", "extra": [1]}, r"extra is \[1\], and run_id is stored in extra. Give a dict as extra."),
    ],
)
@pytest.mark.parametrize("call", [AuditContextManager, set_audit_context])
def test_what_cannot_be_told_of_an_actor_is_refused(call, arguments, message):
    with pytest.raises(ContextError, match=message):
        call(**arguments)


@pytest.mark.parametrize(("outer", "inner"), [({"run_id": "r"}, {"extra": [1]}), ({"extra": [1]}, {"run_id": "r"})])
def test_an_extra_that_would_hide_the_actor_is_refused(outer, inner):
    with AuditContextManager(**outer):
        before = get_audit_context()
        with pytest.raises(ContextError, match="run_id would be lost"), AuditContextManager(**inner):
            pass
        assert get_audit_context() == before
