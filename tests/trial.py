"""Promises that are tried one after the other on one thing: what tests/oci and tests/arm64 share."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SKIPPED = 77

# Seconds that a build may take, and a command, a start and a stop.
BUILD = 1200
PATIENCE = 60


def output(*command, patience=PATIENCE):
    """What a command prints that must succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}: "
                             f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


class Trial(contextlib.ExitStack):
    """What a run is about; promises find it as their argument, and add to it."""

    def __init__(self, work, options):
        super().__init__()
        self.work, self.options = work, options
        self.figures = {}


def run(name, tools, promises, options):
    """Tries promises until one is not kept; returns the exit status.

    Each uses what those before it have found.  `tools` has the packages in which they are."""
    lacking = sorted({package for tool, package in tools.items() if not shutil.which(tool)})
    if lacking or os.geteuid() != 0:
        print(f"{name}: skipped: it needs root, and {' '.join(lacking) or 'no further package'}")
        return SKIPPED
    # So that everything is left in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="tcp-echo-trial.") as work, \
            Trial(pathlib.Path(work), options) as trial:
        for promise in promises:
            sentence = promise.__name__.replace("_", " ")
            begun = time.monotonic()
            try:
                promise(trial)
            except (AssertionError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
                failed = 1
                print(f"FAILED {sentence}: {type(error).__name__} {error}", flush=True)
                break
            passed += 1
            print(f"ok     {sentence}  {time.monotonic() - begun:.1f} s", flush=True)
        for figure, value in trial.figures.items():
            print(f"figure: {figure}: {value}")
    print(f"{passed} passed, {failed} failed")
    return failed
