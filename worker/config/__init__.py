"""The table of all parameters, main.cf syntax and lookup tables. Start in parameters.py."""
