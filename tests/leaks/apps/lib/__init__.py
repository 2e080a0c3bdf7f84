"""What the leaking apps share; nothing in here leaks except `site-packages/tinypool.py`."""
