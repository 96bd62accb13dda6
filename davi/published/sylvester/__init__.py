"""Published Sylvester flows."""
