"""Stands in for the package in this folder of a clone, so that `import effnet_np` works here without an installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.modules.pop("effnet_np", None)
import effnet_np  # noqa: E402, F401 - the package itself: whoever imported this file is given what stands in sys.modules now

if __name__ == "__main__":  # python -m effnet_np
    from effnet_np.cli import main

    sys.exit(main())
