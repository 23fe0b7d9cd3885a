"""The local demo: a receiver, a real collector and a backend, a day of config changes, and what arrives of them."""
