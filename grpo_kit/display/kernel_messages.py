"""Let a kernel of ipykernel 6 answer clicks while a cell awaits. Only this file uses ipykernel's private parts."""

PRIVATE_PARTS = ("msg_queue", "session", "_parent_ident", "get_parent", "set_parent")


async def answer_widget_messages() -> None:
    """Handle the widget messages in the kernel's queue; cells that wait there ("Run all") stay in their order.

    Colab and Kaggle have ipykernel 6, which handles no message while a cell awaits. Version 7 handles them by itself,
    so this does nothing there, nor in a version that lacks one of the private parts. Checked with 6.17.1 and 6.29.5.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None or not all(hasattr(kernel, part) for part in PRIVATE_PARTS):
        return
    import ipykernel  # is installed, because there is a kernel

    if ipykernel.version_info[0] != 6:
        return
    queue = kernel.msg_queue
    waiting = [queue.get_nowait() for _ in range(queue.qsize())]
    ident, parent = kernel._parent_ident.get("shell"), kernel.get_parent("shell")
    for item in waiting:
        _, dispatch, args = item
        _, frames = kernel.session.feed_identities(args[0], copy=False)
        if kernel.session.unpack(frames[1].bytes)["msg_type"].startswith("comm_"):
            await dispatch(*args)
        else:
            queue.put_nowait(item)
    if waiting:  # what is printed next belongs to the awaiting cell again
        kernel.set_parent(ident, parent, "shell")
