"""A process in which only what a user of a student has can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Besides torch, or ONNX Runtime and numpy, there is safetensors, which reads weights.
_BLOCK = """
import importlib.machinery, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:  # found, as torch looks what there is, but not to be loaded
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError("refused: " + spec.name, name=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Refuse())
"""
REFUSED = (
    *("understudy", "tests", "torchvision", "timm", "optuna", "sklearn", "tyro", "rich", "tomli_w", "jaxtyping"),
    *("onnx", "onnxscript"),
)


def run_alone(code: str, folder: Path, *, without: tuple[str, ...] = ()) -> str:
    """Run code in a folder where this library, and whatever else a student must not need, cannot be imported."""
    script = _BLOCK.format(refused=repr({*REFUSED, *without})) + code
    done = subprocess.run([sys.executable, "-I", "-B", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
