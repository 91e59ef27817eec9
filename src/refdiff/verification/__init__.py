"""Is a bundle still the reference: the parity ladder, the task, and where a graph first diverges."""
