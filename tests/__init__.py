"""Tests; see README.md for how they are run."""
