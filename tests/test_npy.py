"""Tensors as bytes: NumPy's own format to the byte, shared and not copied on the way in, refused where it is not."""

import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array
from torch import Tensor

from fedpfn.npy import from_npy, npy_parts, npy_size, split_npy, stack_npy, to_npy
from strategies.records import TensorArray, encode

TENSORS = {
    "vector": torch.tensor([1.0, -0.0, float("nan")]),
    "matrix": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
    "scalar": torch.tensor(3.5),
    "nothing": torch.zeros(0, 4),
    "half": torch.tensor([1.5, 2.5], dtype=torch.float16),
    "counts": torch.tensor([[7], [8]]),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
    "channels-last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_the_bytes_are_those_of_numpy_and_come_back_as_they_were(tensor: Tensor) -> None:
    expected = io.BytesIO()
    np.save(expected, np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape))
    data = to_npy(tensor)
    assert data == expected.getvalue()
    found = from_npy(data)
    assert found.dtype == tensor.dtype and found.shape == tensor.shape
    assert torch.equal(found.nan_to_num(9), tensor.nan_to_num(9))


def test_flower_reads_it_as_its_own() -> None:
    for tensor in TENSORS.values():
        if tensor.is_contiguous():
            assert vars(encode(tensor)) == vars(Array(tensor.numpy()))


def test_what_is_read_shares_the_bytes_and_warns_of_nothing() -> None:
    data = to_npy(torch.arange(1000.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = from_npy(data)
    begin = np.frombuffer(data, dtype=np.uint8).ctypes.data
    assert begin < found.data_ptr() < begin + len(data)


def test_other_layouts_are_copied_and_what_is_no_such_file_is_refused() -> None:
    data = to_npy(torch.arange(10.0))
    with pytest.raises(ValueError, match="magic"):
        from_npy(b"no numpy at all")
    with pytest.raises(ValueError, match="announces"):
        from_npy(data[:-4])
    by_columns = io.BytesIO()
    np.save(by_columns, np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert from_npy(by_columns.getvalue()).tolist() == [[0, 1, 2], [3, 4, 5]]
    objects = io.BytesIO()
    np.save(objects, np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="of numbers"):
        from_npy(objects.getvalue())


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_stack_is_the_file_of_the_stacked_tensors(tensor: Tensor) -> None:
    data = to_npy(tensor)
    assert npy_size(tensor) == len(data)
    for parts in (npy_parts(tensor), split_npy(data)):
        assert parts is not None and b"".join(parts) == data
        assert stack_npy(parts[0], [parts[1]] * 3) == to_npy(torch.stack([tensor] * 3))


def test_what_cannot_stand_in_a_stack_is_not_split() -> None:
    by_columns = io.BytesIO()
    np.save(by_columns, np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    for data in (by_columns.getvalue(), to_npy(torch.arange(10.0))[:-4], b"no numpy at all", b""):
        assert split_npy(data) is None


def test_an_array_that_is_not_written_yet_is_the_one_that_is() -> None:
    for tensor in TENSORS.values():
        array, written = TensorArray(tensor), encode(tensor)
        for field in ("dtype", "shape", "stype", "data"):
            assert getattr(array, field) == getattr(written, field)
        copy = array.numpy()
        assert copy.flags.writeable and not np.shares_memory(copy, tensor.numpy())
        sent = pickle.loads(pickle.dumps(array))
        assert type(sent) is Array and vars(sent) == vars(written)
        # on Flower's own wire
        assert array.deflate() == written.deflate()


def test_a_head_that_asks_for_more_than_its_bytes_hold_is_refused_before_there_is_room_for_it() -> None:
    for by_columns in (False, True):
        file = io.BytesIO()
        about = {"descr": "<f4", "fortran_order": by_columns, "shape": (10**7, 10**6)}
        np.lib.format.write_array_header_1_0(file, about)
        with pytest.raises(ValueError):
            from_npy(file.getvalue() + bytes(12))
