"""Examine a machine, what is known to fail on it, and what runs on it.

`sources` says where facts come from (tests replace them), `gather` reads them into `facts`; `checks`,
`known_bad` and `backends` turn facts into lines, and `doctor` puts them together.
"""
