"""What the help desk stores: people with roles, and tickets with comments and tags. All of it has a history."""

from enum import StrEnum

from sqlalchemy import Enum, Text
from sqlmodel import Field, Relationship, SQLModel

from sqlaudit import track_table
from sqlaudit.integrations.sqlmodel import Temporal


class Status(StrEnum):
    NEW = "new"
    OPEN = "open"
    STALE = "stale"
    CLOSED = "closed"


@track_table()
class UserRole(SQLModel, table=True):
    __tablename__ = "user_roles"

    user_id: int = Field(foreign_key="users.id", primary_key=True)
    role_id: int = Field(foreign_key="roles.id", primary_key=True)


@track_table()
class Role(SQLModel, table=True):
    __tablename__ = "roles"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=50)


@track_table(exclude=["token"])  # no version keeps a secret
class User(SQLModel, table=True):
    __tablename__ = "users"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=50)
    token: str = Field(unique=True, max_length=50)
    roles: list[Role] = Relationship(link_model=UserRole)


@track_table()
class TicketTag(SQLModel, table=True):
    __tablename__ = "ticket_tags"

    ticket_id: int = Field(foreign_key="tickets.id", primary_key=True)
    tag_id: int = Field(foreign_key="tags.id", primary_key=True)


@track_table()
class Tag(SQLModel, table=True):
    __tablename__ = "tags"

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True, max_length=50)


@track_table()
class Ticket(Temporal, SQLModel, table=True):
    __tablename__ = "tickets"

    id: int | None = Field(default=None, primary_key=True)
    title: str = Field(max_length=200)
    status: Status = Field(default=Status.NEW, sa_type=Enum(Status, native_enum=False, length=20))
    priority: int | None = None
    assignee_id: int | None = Field(default=None, foreign_key="users.id")
    tags: list[Tag] = Relationship(link_model=TicketTag)
    comments: list["Comment"] = Relationship(back_populates="ticket", cascade_delete=True)


@track_table()
class Comment(SQLModel, table=True):
    __tablename__ = "comments"

    id: int | None = Field(default=None, primary_key=True)
    ticket_id: int = Field(foreign_key="tickets.id")
    author_id: int = Field(foreign_key="users.id")
    text: str = Field(sa_type=Text)
    ticket: Ticket = Relationship(back_populates="comments")
