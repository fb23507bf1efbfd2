"""Some years of business."""

from shop import Customer, Order, Session

with Session.begin() as session:
    for name in ("Ada", "Bo", "Cy"):
        session.add(Customer(name=name, email=f"{name.lower()}@example.com", orders=[Order(total=10), Order(total=20)]))
