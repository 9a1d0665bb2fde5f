"""Data sets: the packaged digits, torchvision's layouts, folders of images, a user's loader, and what each refuses."""

import hashlib
import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from partitions import array_cache, image_decoding, image_folder
from partitions.arrays import Dataset, Split, channel_moments
from partitions.datasets import DATASETS, DataError, find_faults, load
from partitions.limits import limit


def images_like(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# Digits and the moments of images


def test_digits_are_uint8_images_with_a_split_that_never_changes():
    digits = load("digits")
    assert (digits.name, digits.kind, digits.input_shape, digits.num_classes) == ("digits", "images", (1, 8, 8), 10)
    assert digits.train.inputs.shape == (1438, 1, 8, 8) and digits.test.inputs.shape == (359, 1, 8, 8)
    assert digits.train.inputs.dtype == np.uint8 and digits.train.labels.dtype == np.int64
    assert digits.train.labels[:5].tolist() == [0, 1, 2, 3, 4]
    # The first row of the first image is 0 0 5 13 9 1 0 0 of 16.
    assert digits.train.inputs[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert digits.train.inputs.max() == 255
    again = load("digits")
    assert np.array_equal(again.test.inputs, digits.test.inputs)


def test_digits_are_split_by_a_fifth_of_each_class():
    digits = load("digits")
    totals = np.bincount(digits.train.labels) + np.bincount(digits.test.labels)
    assert np.bincount(digits.test.labels).tolist() == [round(total / 5) for total in totals.tolist()]


def test_moments_of_two_pixels_by_hand():
    # 0 and 255 are 0 and 1: mean 1/2, standard deviation 1/2; a constant channel is left as it is.
    images = np.array([[[[0, 255]], [[51, 51]]]], dtype=np.uint8)
    assert channel_moments(images) == ((0.5, 0.2), (0.5, 1.0))


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 6)] * 4), seed=st.integers(0, 999))
def test_moments_agree_with_the_plain_mean_and_standard_deviation(shape, seed):
    images = images_like(*shape, seed=seed)
    mean, std = channel_moments(images)
    plain = (images / 255).std(axis=(0, 2, 3))
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)))
    assert std == pytest.approx(np.where(plain == 0, 1, plain))


def test_moments_do_not_depend_on_how_many_images_are_taken_at_a_time(monkeypatch):
    images = images_like(50, 3, 4, 4)
    whole = channel_moments(images)
    monkeypatch.setattr("partitions.arrays._IMAGES_AT_ONCE", 7 * 16)
    assert channel_moments(images) == whole


def test_features_and_tokens_have_no_moments():
    for inputs, kind in ((np.zeros((2, 3), np.float32), "features"), (np.zeros((2, 3), np.int64), "tokens")):
        split = Split(inputs, np.zeros(2, np.int64))
        data = Dataset("mine", split, split, 1)
        assert (data.kind, data.input_shape, data.mean, data.std) == (kind, (3,), (), ())


# Names, roots and absent data


def test_importing_the_package_imports_neither_torch_nor_scikit_learn():
    code = (
        "import partitions, sys; print(sorted({'torch', 'torchvision', 'sklearn', 'flwr', 'ray'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "near"), [("cifar-10", "cifar10"), ("MNIST", "mnist"), ("imagefolder", "image-folder")]
)
def test_an_unknown_name_is_told_with_a_near_one(name, near):
    (fault,) = find_faults(name, "", download=False)
    assert fault.startswith(f"no data set {name!r} (did you mean {near!r}?); built in: digits, mnist")
    with pytest.raises(DataError, match="did you mean"):
        load(name)


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("digits", "digits-properties", "diabetes")])
def test_absent_data_are_told_in_one_line_with_the_place_and_the_remedy(name, tmp_path):
    for root in ("", str(tmp_path), str(tmp_path / "nowhere")):
        faults = find_faults(name, root, download=False)
        assert faults and all("\n" not in fault and "data.root" in fault for fault in faults)
        assert all(root in fault for fault in faults)
        with pytest.raises(DataError):
            load(name, root)


def test_absent_torchvision_data_say_which_folder_and_how_to_get_them(tmp_path):
    (fault,) = find_faults("mnist", str(tmp_path), download=False)
    assert fault.startswith(f"data set 'mnist' is not in {tmp_path}/MNIST/raw: ") and "data.download=true" in fault
    assert find_faults("mnist", str(tmp_path), download=True) == []


def test_a_root_that_is_a_file_is_a_fault_even_where_download_is_allowed(tmp_path):
    (tmp_path / "file").touch()
    assert "is a file" in find_faults("cifar10", str(tmp_path / "file"), download=True)[0]


def test_an_image_size_is_refused_where_it_would_be_ignored_or_is_negative(tmp_path):
    assert "image-folder" in find_faults("digits", "", download=False, image_size=32)[0]
    assert "data.image-size = -1 must be" in find_faults("digits", "", download=False, image_size=-1)[0]
    assert len(find_faults("image-folder", "", download=False, image_size=-1)) == 2


# Torchvision's layouts, with tiny files of our own


def write_idx(folder: Path, *, train: int, test: int):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images, labels = images_like(count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_grey_torchvision_images_get_a_channel_and_splits_stay_apart(name, folder, tmp_path):
    write_idx(tmp_path / folder / "raw", train=20, test=10)
    data = load(name, str(tmp_path))
    assert data.train.inputs.shape == (20, 1, 28, 28) and data.test.inputs.shape == (10, 1, 28, 28)
    assert np.array_equal(data.train.inputs[:, 0], images_like(20, 28, 28))
    assert data.train.labels.dtype == np.int64 and data.test.labels.tolist() == list(range(10))


def test_torchvision_data_with_a_file_missing_or_broken_say_so(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw, train=20, test=10)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"'mnist' in .* cannot be read"):
        load("mnist", str(tmp_path))
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (fault,) = find_faults("mnist", str(tmp_path), download=False)
    assert "(it exists, but lacks t10k-labels-idx1-ubyte)" in fault


def write_cifar10(folder: Path) -> np.ndarray:
    """Two images in each of the six batches."""
    folder.mkdir()
    pixels = images_like(12, 3072)
    for part, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        content = {"data": pixels[2 * part : 2 * part + 2], "labels": [part, 9]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return pixels


def test_coloured_torchvision_images_become_channels_first(tmp_path):
    pixels = write_cifar10(tmp_path / "cifar-10-batches-py")
    data = load("cifar10", str(tmp_path))
    assert np.array_equal(data.train.inputs, pixels[:10].reshape(10, 3, 32, 32))
    assert np.array_equal(data.test.inputs, pixels[10:].reshape(2, 3, 32, 32))
    assert data.train.inputs.flags.c_contiguous and data.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]


def test_the_finer_labels_of_cifar100_are_taken(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 4), ("test", 2), ("meta", 0)):
        content = {"data": images_like(count, 3072), "fine_labels": [99] * count, "coarse_labels": [1] * count}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    data = load("cifar100", str(tmp_path))
    assert data.num_classes == 100 and data.train.labels.tolist() == [99] * 4 and len(data.test.labels) == 2


def test_files_are_read_as_torchvision_and_scikit_learn_read_them(tmp_path, monkeypatch):
    import torchvision
    from sklearn.datasets import load_digits

    write_idx(tmp_path / "MNIST" / "raw", train=20, test=10)
    write_cifar10(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    for train in (True, False):
        grey, coloured = (
            getattr(torchvision.datasets, name)(str(tmp_path), train=train) for name in ("MNIST", "CIFAR10")
        )
        ours = [getattr(load(name, str(tmp_path)), "train" if train else "test") for name in ("mnist", "cifar10")]
        assert np.array_equal(ours[0].inputs[:, 0], grey.data.numpy())
        assert np.array_equal(ours[1].inputs.transpose(0, 2, 3, 1), coloured.data)
        assert [list(split.labels) for split in ours] == [list(grey.targets), list(coloured.targets)]
    pixels, labels = load_digits(return_X_y=True)
    digits = load("digits")
    rows = np.concatenate([digits.train.inputs, digits.test.inputs]).reshape(-1, 64)
    expected = np.round(pixels * 255 / 16).astype(np.uint8)
    together = np.column_stack([rows, np.concatenate([digits.train.labels, digits.test.labels])])
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, np.column_stack([expected, labels]).tolist()))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    with pytest.raises(DataError, match=r"cannot be read: os\.system is not part of an array"):
        load("cifar10", str(tmp_path))


def test_a_download_arrives_whole_or_not_at_all(tmp_path, monkeypatch):
    import torchvision

    def broken(self):
        write_idx(Path(self.raw_folder), train=20, test=10)
        raise OSError("connection lost")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", broken)
    with pytest.raises(DataError, match=r"'mnist' could not be downloaded to .*: connection lost"):
        load("mnist", str(tmp_path), download=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    fetched = []
    monkeypatch.setattr(
        torchvision.datasets.MNIST,
        "download",
        lambda self: (fetched.append(self.root), write_idx(Path(self.raw_folder), train=20, test=10)),
    )
    for _ in range(2):
        assert len(load("mnist", str(tmp_path), download=True).train.labels) == 20
    assert len(fetched) == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["MNIST"]


# Folders of images


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images each to train on and one each to test on, 6 wide and 4 high."""
    root = tmp_path / "images"
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = images_like(4, 6, 3, seed=100 * label + number + len(split))
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, as they are."""
    seen, decode = [], image_decoding.decode
    monkeypatch.setattr(image_decoding, "decode", lambda path, **given: (seen.append(path), decode(path, **given))[1])
    return seen


def load_folder(root, tmp_path, **given):
    return load("image-folder", str(root), cache_dir=tmp_path / "cache", **given)


def test_a_folder_of_images_is_read_as_torchvision_reads_it(folder, tmp_path):
    from torchvision.datasets import ImageFolder

    (folder / "train" / "ant" / "b").mkdir()
    (folder / "train" / "ant" / "2.png").rename(folder / "train" / "ant" / "b" / "0.PNG")
    (folder / "train" / "notes.txt").touch()
    (folder / "train" / "bee" / "notes.txt").touch()
    data = load_folder(folder, tmp_path)
    for split, name in ((data.train, "train"), (data.test, "test")):
        reference = ImageFolder(str(folder / name))
        assert split.labels.tolist() == reference.targets
        assert np.array_equal(split.inputs, [np.asarray(image).transpose(2, 0, 1) for image, _ in reference])
    assert data.input_shape == (3, 4, 6) and data.num_classes == 2 and data.kind == "images"


def test_names_that_begin_with_a_dot_are_left_out(folder, tmp_path):
    (folder / "train" / "ant" / "._0.png").write_bytes(b"resource fork")
    (folder / "train" / ".checkpoints").mkdir()
    (folder / "train" / "ant" / ".hidden").mkdir()
    (folder / "train" / "ant" / ".hidden" / "0.png").write_bytes(b"nothing")
    assert load_folder(folder, tmp_path).train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_grey_palette_and_transparent_images_become_rgb(folder, tmp_path):
    grey = Image.fromarray(images_like(4, 6))
    grey.save(folder / "train" / "ant" / "0.png")
    grey.convert("P").save(folder / "train" / "ant" / "1.png")
    grey.convert("RGBA").save(folder / "train" / "ant" / "2.png")
    for image in load_folder(folder, tmp_path).train.inputs[:3]:
        assert np.array_equal(image, np.repeat(images_like(4, 6)[None], 3, axis=0))


def test_a_second_load_decodes_nothing_and_reads_no_image(folder, tmp_path, decoded, monkeypatch):
    first = load_folder(folder, tmp_path)
    assert len({str(path) for path in decoded}) == 8
    decoded.clear()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    second = load_folder(folder, tmp_path)
    assert decoded == [] and np.array_equal(first.train.inputs, second.train.inputs)
    assert isinstance(second.train.inputs, np.memmap) and not second.train.inputs.flags.writeable


def test_the_cache_goes_by_place_size_and_time_of_each_file(folder, tmp_path, decoded):
    load_folder(folder, tmp_path)
    changed = folder / "train" / "bee" / "1.png"
    for change in (
        lambda: Image.fromarray(np.full((4, 6, 3), 7, dtype=np.uint8)).save(changed),
        lambda: os.utime(changed, (1, 1)),
    ):
        decoded.clear()
        change()
        assert (load_folder(folder, tmp_path).train.inputs[4] == 7).all()
        assert {path.parts[-3] for path in decoded} == {"train"}, "the test split did not change"
    decoded.clear()
    folder.rename(tmp_path / "moved")
    load_folder(tmp_path / "moved", tmp_path)
    assert len({str(path) for path in decoded}) == 8, "another folder may hold other images of the same sizes and times"


def test_a_renamed_file_moves_to_its_new_place(folder, tmp_path):
    before = load_folder(folder, tmp_path).train
    (folder / "train" / "ant" / "0.png").rename(folder / "train" / "bee" / "9.png")
    after = load_folder(folder, tmp_path).train
    assert after.labels.tolist() == [0, 0, 1, 1, 1, 1] and np.array_equal(after.inputs[5], before.inputs[0])


def test_a_cache_cut_short_is_built_anew(folder, tmp_path):
    whole = np.array(load_folder(folder, tmp_path).train.inputs)
    for path in (tmp_path / "cache").rglob("*.*"):
        path.write_bytes(path.read_bytes()[:50])
    assert np.array_equal(load_folder(folder, tmp_path).train.inputs, whole)
    for path in (tmp_path / "cache").rglob("*.*"):
        path.write_bytes(b"")
    assert np.array_equal(load_folder(folder, tmp_path).train.inputs, whole)


def test_loads_at_the_same_time_do_not_disturb_one_another(folder, tmp_path):
    found, start = [], threading.Barrier(4)

    def work():
        start.wait()
        found.append(load_folder(folder, tmp_path))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(data.train.inputs, found[0].train.inputs) for data in found)
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_the_cache_lies_where_the_environment_says(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("FEDPFN_CACHE", raising=False)
    assert array_cache.default_folder() == tmp_path / "home" / ".cache" / "fedpfn"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert array_cache.default_folder() == tmp_path / "xdg" / "fedpfn"
    monkeypatch.setenv("FEDPFN_CACHE", str(tmp_path / "own"))
    load("image-folder", str(folder))
    assert len(list((tmp_path / "own").rglob("*.npy"))) == 2


def test_a_cache_that_cannot_be_written_says_how_to_move_it(folder, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot be cached in .*FEDPFN_CACHE"):
        load_folder(folder, tmp_path)


def test_a_disk_too_small_is_told_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1}))
    with pytest.raises(DataError, match="MiB are needed and 0 MiB free"):
        load_folder(folder, tmp_path)


def test_decoding_tells_its_progress(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="partitions"):
        load_folder(folder, tmp_path)
    assert f"decoded 6 of 6 images of {folder / 'train'}" in caplog.messages


def test_an_image_that_cannot_be_decoded_is_named(folder, tmp_path):
    broken = folder / "train" / "bee" / "1.png"
    for content in (b"no image at all", broken.read_bytes()[:60]):
        broken.write_bytes(content)
        with pytest.raises(DataError, match="cannot be decoded") as error:
            load_folder(folder, tmp_path)
        assert str(broken) in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "cache").rglob("*.npy*"))


def test_an_image_with_16_bits_is_refused_rather_than_clipped(folder, tmp_path):
    Image.fromarray(np.full((4, 6), 40_000, dtype=np.uint16)).save(folder / "train" / "ant" / "1.png")
    with pytest.raises(DataError, match=r"1\.png has mode 'I;16'"):
        load_folder(folder, tmp_path)


def test_an_image_of_another_size_is_named_with_both_sizes(folder, tmp_path):
    Image.fromarray(images_like(5, 7, 3)).save(folder / "train" / "bee" / "2.png")
    with pytest.raises(DataError, match=r"bee/2\.png is 7x5, .*ant/0\.png is 6x4; .*data\.image-size"):
        load_folder(folder, tmp_path)


def test_splits_of_different_sizes_are_refused(folder, tmp_path):
    for path in (folder / "test").rglob("*.png"):
        Image.fromarray(images_like(5, 7, 3)).save(path)
    with pytest.raises(DataError, match=r"train are 6x4, those in .*test 7x5; .*data\.image-size"):
        load_folder(folder, tmp_path)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (40, 31), (17, 64), (9, 9)])
def test_resizing_is_torchvisions_resize_and_centre_crop(height, width, tmp_path):
    from torchvision import transforms

    path = tmp_path / "image.png"
    Image.fromarray(images_like(height, width, 3)).save(path)
    reference = transforms.Compose([transforms.Resize(10), transforms.CenterCrop(10)])
    with Image.open(path) as image:
        expected = np.asarray(reference(image)).transpose(2, 0, 1)
    assert np.array_equal(image_decoding.decode(path, image_size=10), expected)


def test_an_image_size_makes_images_of_many_sizes_alike_and_is_cached_by_itself(folder, tmp_path, decoded):
    Image.fromarray(images_like(50, 7, 3)).save(folder / "train" / "bee" / "2.png")
    assert load_folder(folder, tmp_path, image_size=8).input_shape == (3, 8, 8)
    assert load_folder(folder, tmp_path, image_size=5).input_shape == (3, 5, 5)
    decoded.clear()
    assert load_folder(folder, tmp_path, image_size=8).input_shape == (3, 8, 8) and decoded == []


def test_val_serves_where_there_is_no_test(folder, tmp_path):
    (folder / "test").rename(folder / "val")
    assert find_faults("image-folder", str(folder), download=False) == []
    assert load_folder(folder, tmp_path).test.labels.tolist() == [0, 1]


def test_missing_folders_and_differing_classes_are_told_without_decoding(folder, decoded):
    (folder / "test" / "bee").rename(folder / "test" / "cow")
    one, other = find_faults("image-folder", str(folder), download=False)
    assert one.startswith(f"{folder / 'train'} lacks 1 of 2 classes of the other split: cow")
    assert other.startswith(f"{folder / 'test'} lacks 1 of 2 classes of the other split: bee")
    (folder / "test").rename(folder / "testing")
    (fault,) = find_faults("image-folder", str(folder), download=False)
    assert fault.startswith(f"neither folder {folder / 'test'} nor {folder / 'val'}")
    (folder / "train").rename(folder / "training")
    assert len(find_faults("image-folder", str(folder), download=False)) == 2 and decoded == []


def test_a_class_without_images_is_told(folder, tmp_path):
    (folder / "test" / "ant" / "0.png").rename(folder / "test" / "ant" / "0.txt")
    with pytest.raises(DataError, match=r"class folder .*test/ant holds no image"):
        load_folder(folder, tmp_path)


# A loader of one's own


def returning(train_inputs, train_labels=None, test_inputs=None, test_labels=None):
    """A loader of these arrays; where none are given, labels 0 and 1 in turn, and a test split like the train split."""
    train_labels = np.arange(len(train_inputs)) % 2 if train_labels is None else train_labels
    test = (train_inputs if test_inputs is None else test_inputs, train_labels if test_labels is None else test_labels)
    return lambda: ((train_inputs, train_labels), test)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 8, 9), (1, 8, 9)), ((5, 8, 9, 3), (3, 8, 9)), ((5, 4, 8, 9), (4, 8, 9)), ((5, 8, 9, 1), (1, 8, 9))],
)
def test_images_of_every_layout_become_channels_first(shape, expected):
    images = images_like(*shape)
    data = load(returning(images))
    assert data.kind == "images" and data.input_shape == expected and data.num_classes == 2
    assert data.train.inputs.flags.c_contiguous
    assert np.array_equal(np.sort(data.train.inputs.ravel()), np.sort(images.ravel()))
    if shape == (5, 8, 9, 3):
        assert np.array_equal(data.train.inputs[2, 1], images[2, :, :, 1])


def test_features_become_float32_and_tokens_int64():
    assert load(returning(np.ones((4, 2, 3)))).train.inputs.dtype == np.float32
    tokens = load(returning(np.ones((4, 7), dtype=np.int32)))
    assert tokens.kind == "tokens" and tokens.train.inputs.dtype == np.int64


def test_tensors_are_taken_and_labels_of_any_integer_type():
    import torch

    data = load(returning(torch.ones(4, 3), torch.tensor([0, 2, 1, 0], dtype=torch.uint8)))
    assert data.kind == "features" and data.num_classes == 3 and data.train.labels.dtype == np.int64


def test_classes_are_counted_over_both_splits():
    assert load(returning(np.ones((4, 2)), np.array([0, 1, 0, 1]), np.ones((1, 2)), np.array([4]))).num_classes == 5


def test_a_loader_gets_the_users_arguments():
    def loader(root, *, size):
        labels = np.arange(size) % 2
        return ((np.ones((size, 3), dtype=np.float32), labels),) * 2

    assert len(load(loader, "/a", args={"size": 7}).train.labels) == 7


def test_a_loader_gets_the_root_where_its_signature_takes_it():
    seen = []

    def with_root(root):
        seen.append(root)
        return returning(np.ones((4, 2)))()

    def with_anything(**given):
        return with_root(given["root"])

    load(with_root, "/somewhere")
    data = load(with_anything, "/elsewhere")
    assert seen == ["/somewhere", "/elsewhere"] and data.name.endswith("with_anything")
    assert find_faults(with_root, "", download=False) == []


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (lambda: 1 / 0, "failed: ZeroDivisionError"),
        (lambda: None, r"returned a NoneType; expected \(\(train_inputs"),
        (lambda: ((np.ones((2, 2)), np.zeros(2, int)),), "returned a tuple; expected"),
        (returning(images_like(2, 3, 8, 4)), "which can be read as"),
        (returning(images_like(2, 5, 8, 9)), "no axis of which can be 1, 3 or 4 channels"),
        (returning(images_like(2, 5)), r"are uint8 \(2, 5\); expected uint8 images"),
        (returning(np.ones((2, 5), dtype=np.float16)), r"are float16 \(2, 5\); expected"),
        (returning(np.ones((2, 5, 5), dtype=np.int64)), r"are int64 \(2, 5, 5\); expected"),
        (returning(np.ones(2)), r"are float64 \(2,\); expected"),
        (returning(np.array([[-1, 2]])), "tokens below 0: -1"),
        (returning(np.array([[1.0, np.nan], [0, 0]])), r"train inputs .* not finite as float32: nan at \(0, 1\)"),
        (returning(np.array([[1.0, 1e300]])), r"not finite as float32: 1e\+300 at \(0, 1\)"),
        (returning(np.ones((0, 2))), r"train inputs .* are empty"),
        (returning([[1.0], [1.0, 2.0]]), "train inputs .* cannot be made an array"),
        (returning(np.ones((2, 2)), np.array(["a", "b"])), r"train labels .* are <U1 \(2,\); expected integers"),
        (returning(np.ones((2, 2)), np.array([0.0, np.inf])), r"train labels .* not finite as float32: inf at \(1,\)"),
        (returning(np.ones((2, 2)), np.array([[0], [2]])), r"train labels .* are int64 \(2, 1\) and hold 2; expected"),
        (returning(np.ones((2, 2)), test_labels=np.ones(2)), r"labels .* differ: int64 \(2,\) and float32 \(2,\)"),
        (returning(np.ones((2, 2)), np.array([0, -1])), "train labels .* go down to -1"),
        (returning(np.ones((2, 2)), np.array([0])), "train inputs .* are 2, their labels 1"),
        (returning(np.ones((2, 2)), np.array([0, 99])), "reach 99 with 4 examples in all"),
        (returning(np.ones((2, 2)), test_inputs=np.ones((2, 3))), r"differ: float32 \(2, 2\) and float32 \(2, 3\)"),
        (returning(np.ones((2, 2)), test_inputs=np.ones((2, 2), int)), "differ: float32 .* and int64"),
    ],
)
def test_what_a_loader_got_wrong_is_told_in_one_line(loader, expected):
    with pytest.raises(DataError, match=expected) as error:
        load(loader)
    assert "\n" not in str(error.value)


# Real data


def real_data(*parts):
    root = os.environ.get("FEDPFN_TEST_DATA", "")
    if not root:
        pytest.skip("set FEDPFN_TEST_DATA to a data root to test with real data")
    if not Path(root, *parts).exists():
        pytest.skip(f"{Path(root, *parts)} is absent")
    return root


def test_real_mnist_is_the_original():
    root = real_data("MNIST", "raw", "train-images-idx3-ubyte")
    assert find_faults("mnist", root, download=False) == []
    data = load("mnist", root)
    header = struct.pack(">IIII", 0x803, 60_000, 28, 28)
    digest = hashlib.md5(header + data.train.inputs.tobytes()).hexdigest()
    assert digest == "6bbc9ace898e44ae57da46a324031adb"
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9] and len(data.test.labels) == 10_000
    assert data.mean == pytest.approx([0.1307], abs=1e-4) and data.std == pytest.approx([0.3081], abs=1e-4)


def test_real_images_in_folders_are_decoded_once(tmp_path, decoded):
    root = real_data("cifar10-jpeg", "train")
    data = load_folder(Path(root, "cifar10-jpeg"), tmp_path)
    assert data.train.inputs.shape == (50_000, 3, 32, 32) and data.test.inputs.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert data.mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-3)
    decoded.clear()
    load_folder(Path(root, "cifar10-jpeg"), tmp_path)
    assert decoded == []


# a small try


def test_a_limit_keeps_splits_apart_and_the_order_and_classes_of_the_data():
    whole = load("digits")
    small = limit(whole, train=100, test=30, rng=np.random.default_rng(0))
    assert (len(small.train.labels), len(small.test.labels), small.num_classes) == (100, 30, 10)
    for part, of in ((small.train, whole.train), (small.test, whole.test)):
        rows = [np.flatnonzero((of.inputs == image).all(axis=(1, 2, 3)))[0] for image in part.inputs]
        assert rows == sorted(rows) and (of.labels[rows] == part.labels).all()


def test_a_limit_is_a_function_of_the_generator_and_smaller_ones_are_part_of_larger_ones():
    whole = load("digits")

    def rows(train, test=0, seed=0):
        small = limit(whole, train=train, test=test, rng=np.random.default_rng(seed))
        return {image.tobytes() for image in small.train.inputs}

    assert rows(50) == rows(50, test=20) != rows(50, seed=1)
    assert rows(50) < rows(80)


def test_no_limit_and_one_beyond_the_data_leave_them_as_they_are():
    whole = load("digits")
    same = limit(whole, train=0, test=10_000, rng=np.random.default_rng(0))
    assert same.train is whole.train and same.test is whole.test
