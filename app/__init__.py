"""The application: gateway, OpenAI layer, configuration, command line and the client for handle calls."""
