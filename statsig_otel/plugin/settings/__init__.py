"""What a user may write in the configuration."""
