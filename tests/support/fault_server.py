"""A process that carries out command lines in forks of itself, with the fault shim loaded and torch imported.

Started by :class:`fault_trials.Server`; a request and an answer are a line of JSON each.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from typing import Any

ONE_RUN, WITH_MODELS = 30.0, 300.0
"""Seconds after which a run counts as one that hangs."""

_ROOMS = (
    "adapters apply bake checkpoints compare convert extract files formats inspect merge models "
    "resize resolve sizes"
)
_ROOMS_WITH_MODELS = "generation peft training training.evaluation training.methods training.experiments"
_LIBRARIES = "accelerate matplotlib.figure torchmetrics transformers.models.clip diffusers.optimization"
"""What is imported at last, beside what the rooms import."""


def serve(*, models: bool) -> None:
    """Answer requests until stdin ends."""
    shim = ctypes.CDLL(None)
    for name in (_ROOMS + (f" {_ROOMS_WITH_MODELS}" if models else "")).split():
        package = importlib.import_module(f"paramerge.{name}")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name != "__main__":
                importlib.import_module(f"paramerge.{name}.{module.name}")
    if models:
        import diffusers
        import transformers

        for library in _LIBRARIES.split():
            importlib.import_module(library)
        diffusers.StableDiffusionPipeline, transformers.CLIPModel, transformers.CLIPTokenizer  # noqa: B018 - lazy
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        limit = WITH_MODELS if models else ONE_RUN
        print(json.dumps(_run(shim, json.loads(line), limit)), flush=True)


def _run(shim: ctypes.CDLL, request: dict[str, Any], limit: float) -> int | str:
    """The exit code of a run, the negative number of the signal that ended it, or ``hang``."""
    child = os.fork()
    if child == 0:
        os._exit(_child(shim, request))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"


def _child(shim: ctypes.CDLL, request: dict[str, Any]) -> int:
    from paramerge.cli.main import main

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nohup and & have some ignored
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(request["folder"])
    os.environ["XDG_CACHE_HOME"] = request["folder"] + "/cache"
    for target, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), target)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if request["how"] is not None:
        arguments = (request["at"], request["how"], request["number"], log)
        shim.fault_arm(request["folder"].encode(), *(ctypes.c_long(value) for value in arguments))
    try:
        main(request["arguments"])
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        shim.fault_disarm()
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(models="models" in sys.argv)
