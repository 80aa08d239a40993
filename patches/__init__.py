"""The only code that names a host's private members."""
