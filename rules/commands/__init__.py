"""Our commands beside doit's own, one file each."""

from __future__ import annotations

import sys
from contextlib import suppress
from getopt import GetoptError, gnu_getopt

from doit.cmd_base import Command

from rules.errors import BuildError

__all__ = ["EngineCommand"]


class EngineCommand(Command):
    """A doit command whose options may follow names, as people type them; doit's parser stops at the first name."""

    def parse_execute(self, in_args: list[str]) -> int:
        """Puts the options first and goes on as doit does."""
        with suppress(GetoptError):  # doit's parser says what is wrong
            options, names = gnu_getopt(in_args, self.cmdparser.get_short(), self.cmdparser.get_long())
            in_args = [*(f"{option}={value}" if value else option for option, value in options), *names]
        try:
            return int(super().parse_execute(in_args))
        except BuildError as error:
            sys.stderr.write(f"ERROR: {error}\n")
            return 1
