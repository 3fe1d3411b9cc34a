"""Our commands beside doit's own, one file each."""

from __future__ import annotations

import signal
import sys
from getopt import GetoptError, gnu_getopt

from doit.cmd_base import Command
from doit.exceptions import InvalidCommand

from rules.errors import BuildError, Misconfigured, nearest

__all__ = ["HELP", "EngineCommand"]

HELP = frozenset(("-h", "--help"))


class EngineCommand(Command):
    """A doit command whose options may follow names, as people type them; doit's parser stops at the first name."""

    def parse_execute(self, in_args: list[str]) -> int:
        """Puts the options first and goes on as doit does; --help is told as `doit help COMMAND` tells it.

        What is wrong is one error: exit 3, of a failed step 1. Ctrl-C has no traceback: exit 130.
        """
        if HELP.intersection(in_args):
            print(self.help())
            return 0
        try:
            options, names = gnu_getopt(in_args, self.cmdparser.get_short(), self.cmdparser.get_long())
        except GetoptError as error:
            raise InvalidCommand(self._refused(error)) from error
        typed = [*(f"{option}={value}" if value else option for option, value in options), *names]
        try:
            return int(super().parse_execute(typed))
        except BuildError as error:
            sys.stderr.write(f"ERROR: {error}\n")
            return 3 if isinstance(error, Misconfigured) else 1
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            return 128 + signal.SIGINT

    def _refused(self, error: GetoptError) -> str:
        known = [f"--{word.rstrip('=')}" for word in self.cmdparser.get_long()]
        close = nearest(f"--{error.opt}", known) or "it has none"
        return f"doit {self.name}: {error.msg}\n    hint: {close}; doit help {self.name} says more"
