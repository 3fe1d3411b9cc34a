"""Runs a command on a leash: when who holds the other end is gone, however it ended, the whole command ends too.

    python -I -S leash.py [--powers] DESCRIPTOR COMMAND ARGUMENT...

As root the command obeys the modes of files, so that it cannot write in place into its inputs, which are hard links
into the store; with --powers it need not.

DESCRIPTOR is the reading end of a pipe whose writing end only the holder has. The other descriptors that were passed
on, such as locks, are ours alone: they are held until the command has ended, also when the holder was killed.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys

GRACE_S = 10.0
NOT_FOUND = 127
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


def main() -> int:
    """The command's exit code; a command that a signal ended takes us with it by the same signal."""
    powers = sys.argv[1] == "--powers"
    number, *argv = sys.argv[1 + powers :]
    leash = int(number)
    if os.geteuid() == 0 and not powers:
        obey_modes()
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command; SIG_IGN would be inherited by it
    keep_descriptors()
    try:
        pid = os.posix_spawnp(argv[0], argv, os.environ)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201 - as a shell would
        return NOT_FOUND
    ended = os.pidfd_open(pid)
    if not wait([leash, ended], None) & {ended}:
        os.killpg(0, signal.SIGTERM)
        if not wait([ended], GRACE_S):
            os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else follow(-code)


def obey_modes() -> None:
    """From now on a program that is started as root may write only where the mode lets its owner write.

    It may still read everything, change modes and owners, and all else that root may. Where even root may not give up a
    power, as in some containers, nothing changes.
    """
    import ctypes

    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def keep_descriptors() -> None:
    """What we were given stays ours: the command inherits only its three streams."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib would double the time this takes to start
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)  # noqa: FBT003 - the function's own signature
            except OSError:  # the descriptor of this very listing
                continue


def wait(descriptors: list[int], seconds: float | None) -> set[int]:
    """The descriptors that have something to read; none when the time is over."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)}


def follow(number: int) -> int:
    """Ends by the signal that ended the command, without a second core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main())
