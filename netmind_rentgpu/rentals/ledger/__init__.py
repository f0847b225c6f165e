"""What the state file knows of rentals, and how records and containers are told apart."""
