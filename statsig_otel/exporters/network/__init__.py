"""What any client of a server needs: TLS, proxies, headers, renewed certificates and secrets, and HTTP answers."""
