"""A shop that has customers, and no history yet: docs/adoption.md gives it one."""

import os

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    email: Mapped[str | None] = mapped_column(sa.String(50))
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", cascade="all, delete-orphan")


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey(Customer.id, ondelete="CASCADE"))
    total: Mapped[int]
    customer: Mapped[Customer] = relationship(back_populates="orders")


engine = sa.create_engine(os.environ.get("DATABASE_URL", "sqlite:///shop.db"))
Session = sessionmaker(engine)
