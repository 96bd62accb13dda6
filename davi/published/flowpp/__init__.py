"""Flow++ beside its authors' program."""
