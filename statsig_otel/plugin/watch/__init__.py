"""Shows what a running service does: lets its metrics be read, or sends them."""
