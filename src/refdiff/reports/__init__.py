"""Reports as values, laid out once, for the terminal and as HTML."""
