"""Published i-RevNet."""
