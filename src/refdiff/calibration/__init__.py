"""How many bits each tensor gets: feeds, ranges, headroom, half-precision and Q/DQ passes, recipes."""
