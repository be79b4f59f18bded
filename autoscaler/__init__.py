"""Arrival history, forecasts of it, and the decisions taken ahead of demand. Imports nothing of the other packages."""
