"""FROM WHERE examples come."""
