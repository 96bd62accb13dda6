"""Published Real NVP."""
