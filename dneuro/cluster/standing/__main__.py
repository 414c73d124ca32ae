"""``python -m dneuro.cluster.standing FOLDER``: what `dneuro.cluster.standing.up` starts."""

import sys
from pathlib import Path

from dneuro.cluster.standing.holding import hold
from dneuro.errors import DneuroError

if __name__ == "__main__":
    try:
        sys.exit(hold(Path(sys.argv[1])))
    except DneuroError as error:
        sys.exit(f"error: {error}")
