"""An exporter to a Kafka topic: what the brokers have acknowledged counts as delivered."""
