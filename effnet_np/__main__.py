"""`python -m effnet_np` is the command `effnet-np`, also where nothing is installed."""

import sys

from effnet_np.cli import main

sys.exit(main())
