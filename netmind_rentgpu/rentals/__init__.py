"""Rentals that cannot leak: what to rent, the ledger, a rental's life, the reaper."""
