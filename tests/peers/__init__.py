"""What stands at the other end of a connection in the tests: real servers on loopback that record and can misbehave."""
