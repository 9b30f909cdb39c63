"""`python -m jpq_jax.cli`."""

import sys

from jpq_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
