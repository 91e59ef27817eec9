"""refdiff as an HTTP server, and the client for it."""
