"""Chooses what to rent: machines on offer, an image, a password."""
