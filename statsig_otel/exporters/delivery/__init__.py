"""Carries records from the queue or from a request to the exporters: batches, retries, halving, dead letters."""
