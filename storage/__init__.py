"""Where a model's bytes are: resolving a source to a directory an engine can read."""
