"""The log of the run, for what DVC and stages print."""

from prefect.logging import get_run_logger

from zimage.errors import printable


def told(line: str) -> None:
    """Write a line into the run's log."""
    get_run_logger().info("%s", printable(line))
