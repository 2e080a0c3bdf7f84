"""A tool's own, which loads no other one behind it."""
