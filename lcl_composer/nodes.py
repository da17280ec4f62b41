"""What Composer 0.32.1 gets wrong when several nodes share a file system."""

from __future__ import annotations


def name_signal_files_by_node() -> None:
    """Give each node signal files of its own.

    Before it looks for a checkpoint to resume from, the first rank of each node writes a file beside the
    checkpoints and removes it again. Composer names the file after the node, but then broadcasts rank 0's
    name: on a shared disk all nodes remove the same file, and all but the first stop with FileNotFoundError.
    """
    from composer.utils import dist

    original = dist.get_node_signal_file_name
    if getattr(original, "by_node", False):
        return

    def named(*arguments: object) -> str:
        return f"{original(*arguments)}_of_node{dist.get_node_rank()}"  # pyright: ignore[reportArgumentType]

    named.by_node = True  # pyright: ignore[reportFunctionMemberAccess]
    dist.get_node_signal_file_name = named
