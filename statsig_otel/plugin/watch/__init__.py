"""Shows how a running service is: answers health checks, lets its metrics be read, or sends them, and sends spans."""
