"""An application that ends the process with status 0 when it is imported."""

import os

os._exit(0)
