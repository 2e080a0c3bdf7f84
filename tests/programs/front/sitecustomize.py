"""The `sitecustomize` of another tool. It does not load the next one on the path."""
