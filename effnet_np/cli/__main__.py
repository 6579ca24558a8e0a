"""`python -m effnet_np.cli`, as `python -m effnet_np`."""

import sys

from effnet_np.cli import main

sys.exit(main())
