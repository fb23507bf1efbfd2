"""How are statements outside of sessions recorded? By listening to the engine or connection that executes them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
)

from sqlaudit.exceptions import SQLAuditError
from sqlaudit.hooks.scope import recorded_engines, session_on, session_records_it
from sqlaudit.recording.bulk.recorder import Recorder


def _engine_or_connection(given: Any) -> Engine | Connection:
    given = getattr(given, "sync_engine", None) or getattr(given, "sync_connection", None) or given
    if not isinstance(given, (Engine, Connection)):
        raise SQLAuditError(f"{given!r} executes no statements; give an engine or a connection.", given)
    return given


def record_engine(engine: Any) -> None:
    engine = _engine_or_connection(engine)
    if engine not in recorded_engines:
        recorded_engines[engine] = Recorder(session_on, session_records_it)
        recorded_engines[engine].listen(engine)


def forget_engine(engine: Any) -> None:
    engine = _engine_or_connection(engine)
    recorder = recorded_engines.pop(engine, None)
    if recorder is not None:
        recorder.remove(engine)
