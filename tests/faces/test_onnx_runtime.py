import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARAMS = {
    "yunet-sface": "engine_of('yunet-sface')",
    "insightface": "engine_of(sys.argv[1])",
}


@pytest.mark.parametrize("engine", list(PARAMS))
def test_a_face_engine_starts_no_telemetry(engine: str, tmp_path: Path) -> None:
    """ONNX Runtime writes an id of the device below HOME as soon as its telemetry starts, and sends it 9 s later."""
    from tests.faces.tiny_pack import write_pack

    script = (
        "import sys\nimport numpy as np\n"
        "from zimage.faces.engine import open_engine\nfrom zimage.faces.engine_defaults import engine_of\n"
        f"open_engine({PARAMS[engine]}).find(np.zeros((640, 640, 3), np.uint8))\nassert 'onnxruntime' in sys.modules"
    )
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-c", script, str(write_pack(tmp_path / "pack"))],
        cwd=ROOT,
        env={**unset, "HOME": str(home)},
        check=True,
    )
    assert not [path for path in home.rglob("*") if "onnxruntime" in path.as_posix()]
