"""Engine replicas: the Serve deployment that owns vLLM engines, and the feed that carries their tokens to gateways."""
