"""A FastAPI application in which every change names its user, its reason and its request.

    pip install uvicorn "sqlaudit[async,fastapi]"
    uvicorn --app-dir examples fastapi_app:app

``DATABASE_URL`` names the database, with an asynchronous driver; a SQLite file if it is not set.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlaudit import (
    FieldChange,
    as_of,
    get_resource_changes,
    register_hooks,
    track_table,
    unregister_hooks,
)
from sqlaudit.integrations.fastapi import audit_context

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///customers.db"))
sessions = async_sessionmaker(engine, expire_on_commit=False)


# --- the model --------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    city: Mapped[str | None] = mapped_column(String(50))


class CustomerIn(BaseModel):
    name: Annotated[str, Field(max_length=50)]
    city: Annotated[str | None, Field(max_length=50)] = None


class CustomerOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    city: str | None


# --- the application --------------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    register_hooks(sessions)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()
    unregister_hooks(sessions)


async def who(
    user_id: Annotated[str, Header(alias="X-User", max_length=255)],  # in earnest: from your authentication
    reason: Annotated[str | None, Header(alias="X-Reason")] = None,
) -> dict[str, str | None]:
    """Say who acts and why, for as long as the request takes."""
    return {"user_id": user_id, "reason": reason}


async def open_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


SessionOfRequest = Annotated[AsyncSession, Depends(open_session)]
app = FastAPI(title="Customers with a history", lifespan=lifespan, dependencies=[Depends(audit_context(who))])


@app.post("/customers", status_code=201, response_model=CustomerOut)
async def create(body: CustomerIn, session: SessionOfRequest) -> Customer:
    customer = Customer(**body.model_dump())
    session.add(customer)
    await session.commit()
    return customer


@app.put("/customers/{customer_id}", response_model=CustomerOut)
async def update(customer_id: int, body: CustomerIn, session: SessionOfRequest) -> Customer:
    customer = await existing(customer_id, session)
    for name, value in body:
        setattr(customer, name, value)
    await session.commit()
    return customer


@app.delete("/customers/{customer_id}", status_code=204)
async def delete(customer_id: int, session: SessionOfRequest) -> None:
    await session.delete(await existing(customer_id, session))
    await session.commit()


@app.get("/customers/{customer_id}", response_model=CustomerOut)
async def read(customer_id: int, session: SessionOfRequest, when: AwareDatetime | None = None) -> Customer:
    """Return a customer as it is, or as it was at the instant ``when``."""
    return await existing(customer_id, session, when)


@app.get("/customers/{customer_id}/history")
async def history(customer_id: int, session: SessionOfRequest) -> list[FieldChange]:
    return await get_resource_changes(Customer, session, filter_resource_ids=customer_id)


async def existing(customer_id: int, session: AsyncSession, when: AwareDatetime | None = None) -> Customer:
    customers = select(Customer) if when is None else as_of(Customer, when)
    customer: Customer | None = await session.scalar(customers.where(Customer.id == customer_id))
    if customer is None:
        raise HTTPException(404, f"There is no customer {customer_id}.")
    return customer
