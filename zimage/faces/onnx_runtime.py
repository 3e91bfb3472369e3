"""Import ONNX Runtime without its telemetry; whatever uses it calls this first.

Since 1.32 its builds for Linux send events with the path of the process and an id of the device to Microsoft, some
seconds after the import. Neither DO_NOT_TRACK nor `onnxruntime.disable_telemetry_events()` stops them: what counts is
the environment at the import, which is therefore set here (findings/onnxruntime_telemetry.sh).
"""

import os
from types import ModuleType


def load_onnxruntime() -> ModuleType:
    """Return the module `onnxruntime`, imported with its telemetry switched off."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    found: ModuleType = onnxruntime
    return found
