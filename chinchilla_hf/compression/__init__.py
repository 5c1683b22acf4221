"""Smaller models: less of a trained one, and what it knows in another."""
