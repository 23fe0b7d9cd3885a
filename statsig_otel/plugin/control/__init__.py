"""Sends commands to a running service, or applies them to the queue of a stopped one."""
