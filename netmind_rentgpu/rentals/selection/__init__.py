"""The choice of what to rent: a machine on offer, an image and a password."""
