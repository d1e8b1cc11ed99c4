"""A process in which only what a user of a student has can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# `numpy` comes with torch and with onnxruntime; what they need themselves is theirs.
_BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ModuleNotFoundError("refused: " + name, name=name)
sys.meta_path.insert(0, Refuse())
"""
REFUSED = (
    *("understudy", "tests", "torchvision", "timm", "optuna", "sklearn", "tyro", "rich", "tomli_w", "jaxtyping"),
    *("onnx", "onnxscript", "safetensors"),
)


def run_alone(code: str, folder: Path, *, without: tuple[str, ...] = ()) -> str:
    """Run code in a folder where this library, and whatever else a student must not need, cannot be imported."""
    script = _BLOCK.format(refused=repr({*REFUSED, *without})) + code
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
