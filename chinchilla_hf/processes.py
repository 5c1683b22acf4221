"""What a script in several processes has to do about them."""

import contextlib
import gc
import traceback
from collections.abc import Iterator

import torch.distributed


@contextlib.contextmanager
def closed_process_group() -> Iterator[None]:
    """
    Around the main function of a script: close the process group at its end, also at a `SystemExit`.

    A process that leaves that to the end of the interpreter aborts now and then, after all its work is done: a thread
    of gloo that still holds a tensor of Python's wants the interpreter's lock, and gets none any more (torch 2.13). The
    thread ends when the group does, and the group lives as long as a `DistributedDataParallel` on it, so what the main
    function held has to be collected first.
    """
    try:
        yield
    except SystemExit as end:
        traceback.clear_frames(end.__traceback__)  # they hold the model
        raise
    finally:
        if torch.distributed.is_initialized():
            gc.collect()
            torch.distributed.destroy_process_group()
