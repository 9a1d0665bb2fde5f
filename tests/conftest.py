"""What every test shares: GPU tests are skipped where there is none, and the number of CPU threads is put back.

With ``--pretend-cuda`` they run on CPU tensors that say that they lie on a GPU (``pretend_cuda``).
"""

import os
import signal
import subprocess
from collections.abc import Generator, Iterator

# before rich and typer look: no terminal's width or colours of who runs the tests
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("NO_COLOR", None)
os.environ.pop("COLUMNS", None)

import processes
import pytest
import torch
from hypothesis import settings
from pretend_cuda import pretend_cuda, why_not

from experiments.runtime.worker import assume_identity
from fedpfn.devices import float32_products

# no deadline: a shared machine is slow at times; the same examples in each run: a red test stays red
settings.register_profile("fedpfn", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fedpfn")
# toys are too small to be spread over cores: with more threads than that the suite takes twice as long
torch.set_num_threads(1)
# started in the background by a shell, as by `nohup`, it would be ignored by this process and by all that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
SIGTERM = signal.getsignal(signal.SIGTERM)
# tests that run only where -m names their marker
ASKED_FOR = ("browser", "system")
# no test cuts the power, and to wait for the disk takes as long as the rest of a toy federation
os.fsync = lambda file: None
# messages can be made in this process, whichever test is the first to
assume_identity()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pretend-cuda", action="store_true", help="run the tests marked gpu on a pretended GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--pretend-cuda"):
        reason = why_not()
    else:
        reason = "" if torch.cuda.is_available() else "no CUDA device is visible"
    for marker in ASKED_FOR:
        if marker not in config.option.markexpr:
            left = [item for item in items if item.get_closest_marker(marker)]
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=left)
    for item in items:
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if item.config.getoption("--pretend-cuda") and item.get_closest_marker("gpu"):
        with pretend_cuda():
            return (yield)
    return (yield)


@pytest.fixture(autouse=True)
def float32_on_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begin each test for a GPU alike, whichever ran before it: without TF32, and with the first GPU."""
    if not request.node.get_closest_marker("gpu") or request.config.getoption("--pretend-cuda"):
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    with float32_products():
        torch.cuda.set_device(0)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    cudnn.benchmark, cudnn.deterministic = before[:2]
    torch.use_deterministic_algorithms(before[2])


@pytest.fixture(autouse=True)
def sigterm() -> None:
    """Begin each test without Ray's answer to SIGTERM.

    ``ray.init`` leaves a handler that Python names and the system has not: the signal ends this process at once.
    """
    signal.signal(signal.SIGTERM, SIGTERM)


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes to be ended, with all that they have started."""
    leaders: list[subprocess.Popen[bytes]] = []
    yield leaders
    processes.end(leader.pid for leader in leaders)
    for leader in leaders:
        leader.wait()


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nothing_pretended_stays() -> Iterator[None]:
    """Fail a test that leaves a GPU behind which there is not."""
    before = torch.cuda.device_count, torch.cuda.is_available, torch.cuda.set_device
    yield
    assert (torch.cuda.device_count, torch.cuda.is_available, torch.cuda.set_device) == before
