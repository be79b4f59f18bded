"""Scaling decisions. Today Serve's own request-based policy scales the pools; forecasts come here."""
