"""Shows how a running service is: answers health checks, and lets its metrics be read, or sends them."""
