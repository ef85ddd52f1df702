"""`python -m deepmcat_client` is `deepmcat`."""

import sys

from deepmcat_client.cli import main

sys.exit(main())
