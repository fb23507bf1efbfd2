"""SQL idioms that SQLAlchemy lacks: keys of any type, batches of them, exact comparison, old values."""
