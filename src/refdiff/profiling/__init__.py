"""Where the milliseconds go: spans of a watched pipeline, what is made of them, and records compared."""
