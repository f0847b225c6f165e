"""Records of rentals in the state file: their names, their owners, and the containers that belong to them."""
