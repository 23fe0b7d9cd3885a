"""Shows how a running service is: its live page, what happened last, health checks, its metrics and its spans."""
