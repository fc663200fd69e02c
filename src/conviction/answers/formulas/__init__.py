"""Reading formulas cheaply: markup, parsing, a normal form, and the shapes answers come in."""
