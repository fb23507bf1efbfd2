"""How does a row become again what it was? From a version to a plan, and from a plan to flushes."""
