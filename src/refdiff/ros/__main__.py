"""Start the node as ROS does: `python -m refdiff.ros --ros-args -p bundle:=mini -r image:=/image_raw`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from refdiff.contracts.optional import require_ros
from refdiff.errors import RefdiffError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node.

    Args:
        arguments: ROS's arguments; None takes the process's own.

    Returns:
        The exit code: 0 when stopped by a signal or shut down, else that of the error.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        with require_ros("the node"):
            from refdiff.ros.node import run_node
        run_node({}, sys.argv[1:] if arguments is None else arguments)
    except RefdiffError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
