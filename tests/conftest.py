"""What every test shares: GPU tests are skipped where there is none, and the number of CPU threads is put back."""

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# no deadline: a shared machine is slow at times; the same examples in each run: a red test stays red
settings.register_profile("fedpfn", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fedpfn")
# toys are too small to be spread over cores: with more threads than that the suite takes twice as long
torch.set_num_threads(1)
# started in the background by a shell, as by `nohup`, it would be ignored by this process and by all that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device is visible"))


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
