"""Tests with real Ray and real vLLM; what they share ends with the last of them."""
