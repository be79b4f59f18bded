"""Demo models and adapters, so that a new user serves something real within minutes."""
