"""The tracing process: a request on standard input, a result on standard output."""

from __future__ import annotations

import gc
import json
import sys

from luthier.errors import LuthierError


def main() -> int:
    """Trace what is asked; 0, or 2 with a message for a person in JSON."""
    # What libraries make as they load lives as long as the process: looking through it for garbage again
    # and again takes a fifth of the whole trace.
    gc.disable()
    from luthier.checks.trace.kernels import register
    from luthier.checks.trace.result import extrapolated, whole
    from luthier.checks.trace.step import StepRequest, trace_step

    register()
    gc.freeze()
    gc.enable()
    asked = json.load(sys.stdin)
    request = StepRequest.model_validate(asked["step"])
    depths = asked["depths"]
    try:
        if depths is None:
            found = whole(trace_step(request), asked["layers"], expandable=asked["expandable"])
        else:
            few, more = (trace_step(request.model_copy(update={"layers": depth})) for depth in depths)
            found = extrapolated(few, more, tuple(depths), asked["layers"], expandable=asked["expandable"])
    except LuthierError as error:
        json.dump({"error": error.message, "hint": error.hint}, sys.stdout)
        return 2
    sys.stdout.write(found.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
