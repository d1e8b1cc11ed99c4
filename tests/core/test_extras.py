from __future__ import annotations

import sys
from pathlib import Path

import pytest

from understudy.core.errors import ExtraError
from understudy.core.extras import optional
from understudy.data import Data


def test_what_is_installed_comes() -> None:
    assert optional("json.decoder", extra="vision") is sys.modules["json.decoder"]


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(ExtraError, match=r"nowhere must be installed, but is not: pip install 'understudy\[vision\]'"):
        optional("nowhere.models", extra="vision")


def test_data_of_torchvision_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExtraError, match="torchvision must be installed"):
        Data.open("torchvision:CIFAR10")


def test_a_package_that_does_not_fit_torch_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_another_torch.py").write_text("raise RuntimeError('operator x::nms does not exist')")
    (tmp_path / "lacks_its_own.py").write_text("import nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExtraError, match=r"is not \(operator x::nms does not exist\): its build must fit .* torch 2"):
        optional("of_another_torch", extra="vision")
    with pytest.raises(ExtraError, match="No module named 'nowhere'"):
        optional("lacks_its_own", extra="vision")
