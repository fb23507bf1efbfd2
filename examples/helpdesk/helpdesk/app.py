"""The application: ``uvicorn helpdesk.app:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from helpdesk import history, tickets
from helpdesk.access import who
from helpdesk.database import engine
from sqlaudit.integrations.fastapi import audit_context


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(title="Help desk", lifespan=lifespan, dependencies=[Depends(audit_context(who))])
app.include_router(tickets.router)
app.include_router(history.router)
history.answer_errors(app)
