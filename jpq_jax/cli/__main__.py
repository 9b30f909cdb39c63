"""`python -m jpq_jax.cli`."""

import sys

from jpq_jax.cli import main

sys.exit(main())
