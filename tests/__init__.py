"""The tests; a package, so that no installed package named `tests` is found in its place."""
