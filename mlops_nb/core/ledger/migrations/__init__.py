"""Alembic scripts that bring a ledger from one schema to the next; written by hand, never changed once released."""
