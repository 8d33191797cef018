"""One module for each scenario, with a function `scenario(load)`; the table of them is here."""
