"""What every test runs under: shapes checked, fixed examples, one thread, one device."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# Before torch is imported, so that it holds in the processes that tests start as well.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

from jaxtyping import install_import_hook

import tests.support.typecheck  # noqa: F401 (the hook looks it up by name)

# By name, because the hook must stand before anything of ours is imported. Only what states shapes is checked: mypy
# knows all other types, and binding the arguments of every call made the tests three times slower.
PACKAGE = Path(__file__).parent.parent / "src"
SHAPED = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
gc.disable()  # what is imported stays: see pytest_collection_finish
install_import_hook(SHAPED, "tests.support.typecheck.checked")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=30)
hypothesis.settings.load_profile("fixed")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests that compute run: cpu, cuda or mps")
    parser.addoption("--nightly", action="store_true", help="run the tests as well that are left for the night")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items if not config.getoption("--nightly") else ():
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="left for the night: give --nightly"))


def pytest_collection_finish() -> None:
    """Take what is imported, torch above all, out of what the garbage collector looks through again and again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _hasty() -> Iterator[None]:
    """Time networks in a few short pairs, on one thread: what most tests show of a run is not how fast a network is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.cost.measure.PAIRS", (3, 3))
        patch.setattr("understudy.cost.measure.LEAST_MS", 0.0)
        patch.setattr("understudy.jobs.summary.cores", lambda: 1)
        yield


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that the suite runs on."""
    return torch.device(request.config.getoption("--device"))
