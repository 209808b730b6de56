"""Archives of images: found, read exactly, and refused where they could do harm."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxunlearn.data.archives import cifar10, cifar100, mnist, read_npz, unfilter
from jaxunlearn.data.sources import SPLITS, load


def images(rows, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape)).astype(np.uint8)


def filtered(rgb):
    """The filter forwards: planes G, R - G, B - G, then differences both ways, modulo 256."""
    r, g, b = (rgb[..., c].astype(int) for c in range(3))
    planes = np.stack([g, r - g, b - g])
    for axis in (3, 2):
        planes = np.diff(planes, axis=axis, prepend=0)
    return (planes % 256).astype(np.uint8)


def test_unfilter_undoes_the_filter_exactly():
    rgb = images(5, (7, 6, 3))
    np.testing.assert_array_equal(unfilter(filtered(rgb)), rgb)


@pytest.fixture
def mnist_like():
    return {
        "train_images": images(40, (6, 6)),
        "train_labels": (np.arange(40) % 4).astype(np.uint8),
        "test_images": images(8, (6, 6), seed=1),
        "test_labels": (np.arange(8) % 4).astype(np.uint8),
    }


@pytest.mark.parametrize("place", ["mnist/mnist.npz", "mnist.npz"])
def test_an_archive_is_found_through_the_argument_or_the_environment(
    place, mnist_like, tmp_path, monkeypatch
):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(file, **mnist_like)
    by_argument = mnist(data_dir=tmp_path)
    monkeypatch.setenv("JAXUNLEARN_DATA", str(tmp_path))
    by_environment = load("mnist")
    assert by_argument.digest == by_environment.digest
    assert by_argument.input_shape == (6, 6)
    assert (by_argument.name, by_argument.num_classes) == ("mnist", 4)


def test_ids_are_places_in_the_archive_and_rows_carry_their_own_image(mnist_like, tmp_path):
    np.savez(tmp_path / "mnist.npz", **mnist_like)
    source = mnist(data_dir=tmp_path, validation=0.25)
    assert [len(getattr(source, split)["y"]) for split in SPLITS] == [30, 10, 8]
    both = np.concatenate([mnist_like["train_images"], mnist_like["test_images"]])
    labels = np.concatenate([mnist_like["train_labels"], mnist_like["test_labels"]])
    unit = mnist_like["train_images"][source.train["id"]].astype(np.float64) / 255
    for split in SPLITS:
        columns = getattr(source, split)
        expected = (both[columns["id"]] / 255 - unit.mean()) / unit.std()
        np.testing.assert_allclose(columns["x"], expected, atol=1e-6)
        np.testing.assert_array_equal(columns["y"], labels[columns["id"]])
    assert source.test["id"].min() == 40


def test_no_validation_keeps_every_training_row_in_order(mnist_like, tmp_path):
    np.savez(tmp_path / "mnist.npz", **mnist_like)
    source = mnist(data_dir=tmp_path, validation=0)
    np.testing.assert_array_equal(source.train["id"], np.arange(40))
    assert len(source.validation["y"]) == 0
    with pytest.raises(ValueError, match=r"share of the training rows in \[0, 1\), got 1"):
        mnist(data_dir=tmp_path, validation=1)


def test_residual_and_plain_images_make_the_same_source(tmp_path):
    train, test = images(20, (4, 4, 3)), images(6, (4, 4, 3), seed=1)
    labels = {"train_labels": np.arange(20) % 3, "test_labels": np.arange(6) % 3}
    names = np.array(["cat", "dog", "owl"])
    for folder, arrays in (
        ("plain", {"train_images": train, "test_images": test}),
        ("residual", {"train_residual": filtered(train), "test_residual": filtered(test)}),
    ):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "cifar10.npz", **arrays, **labels, class_names=names)
    plain, residual = (cifar10(data_dir=tmp_path / f) for f in ("plain", "residual"))
    assert plain.digest == residual.digest
    assert plain.class_names == ("cat", "dog", "owl")
    assert plain.input_shape == (4, 4, 3)


def test_cifar100_labels_choose_y_and_keep_the_other_column(tmp_path):
    arrays = {}
    for split, rows in (("train", 60), ("test", 12)):
        arrays[f"{split}_images"] = images(rows, (4, 4, 3))
        arrays[f"{split}_fine"] = (np.arange(rows) % 6).astype(np.uint8)
        arrays[f"{split}_coarse"] = (np.arange(rows) % 6 // 2).astype(np.uint8)
    (tmp_path / "cifar100").mkdir()
    np.savez(tmp_path / "cifar100" / "cifar100_part.npz", **arrays)
    fine, coarse = cifar100(data_dir=tmp_path), load("cifar100:coarse", data_dir=tmp_path)
    assert (fine.num_classes, coarse.num_classes) == (6, 3)
    assert (fine.name, coarse.name) == ("cifar100", "cifar100:coarse")
    for split in SPLITS:  # the split follows the finer label, so it is the same for both
        np.testing.assert_array_equal(getattr(fine, split)["y"], getattr(coarse, split)["fine"])
        np.testing.assert_array_equal(getattr(fine, split)["coarse"], getattr(coarse, split)["y"])
        np.testing.assert_array_equal(getattr(fine, split)["x"], getattr(coarse, split)["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((40, 6, 6), np.float32)}, "expected train_images uint8"),
        ({"train_images": np.zeros((40, 6), np.uint8)}, "expected train_images uint8"),
        ({"train_labels": np.zeros(39, np.uint8)}, r"train_labels integers \(40,\), got .*\(39,\)"),
        ({"train_labels": np.zeros(40)}, r"train_labels integers \(40,\), got float64"),
        ({"train_images": None}, "expected a member train_images or train_residual"),
        ({"test_labels": None}, r"members \['test_labels'\] are missing; it has"),
        ({"train_labels": np.full(40, -1)}, r"train\['y'\] must lie in \[0, 4\), but row 0 has -1"),
    ],
)
def test_an_archive_with_wrong_members_is_refused(change, message, mnist_like, tmp_path):
    arrays = {k: v for k, v in (mnist_like | change).items() if v is not None}
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        mnist(data_dir=tmp_path)


class Touch:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_is_refused_and_never_run(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "mnist.npz").write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ValueError, match="not a readable .npz archive.*Pickles are never read"):
        mnist(data_dir=tmp_path)
    assert not trap.exists()


def test_an_array_of_objects_is_refused_and_never_run(tmp_path):
    trap = tmp_path / "trap"
    np.savez(tmp_path / "a.npz", a=np.array([Touch(trap)], dtype=object))
    with pytest.raises(ValueError, match="member 'a': an array of Python objects is refused"):
        read_npz(tmp_path / "a.npz", ["a"])
    assert not trap.exists()


def npy(shape, data=b""):
    """The bytes of a .npy file with a header that announces `shape` and this much data."""
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


@pytest.mark.parametrize("shape", [(2**50,), (2**20, 2**20), (3,), (-4, -1)])
def test_a_header_that_lies_is_refused_before_allocation(shape, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("a.npy", npy(shape, b"1234"))
    with pytest.raises(ValueError, match="header announces .* but 4 are stored"):
        read_npz(tmp_path / "bomb.npz", ["a"])


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "big.npz", a=np.zeros(10**6, np.uint8), b=np.zeros(3))
    with pytest.raises(ValueError, match="unpacks to 1000128 bytes; at most 1000000"):
        read_npz(tmp_path / "big.npz", ["a"], max_bytes=10**6)
    assert read_npz(tmp_path / "big.npz", ["b"], ["c"], max_bytes=10**6).keys() == {"b"}


def test_every_truncated_or_flipped_archive_is_refused_or_harmless(tmp_path):
    file = tmp_path / "a.npz"
    array = np.random.default_rng(0).integers(0, 256, 200).astype(np.uint8)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy((200,), array.tobytes()))
    intact = file.read_bytes()
    damaged = [intact[:size] for size in range(0, len(intact), 7)]
    for place in range(0, len(intact), 3):
        damaged.append(intact[:place] + bytes([intact[place] ^ 0x41]) + intact[place + 1 :])
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            got = read_npz(file, ["a"])["a"]
        except ValueError:
            refused += 1
        else:  # the flip hit a date or a flag that nobody reads
            np.testing.assert_array_equal(got, array)
    assert refused > 0.8 * len(damaged)


def test_an_old_npy_format_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x09\x00" + npy((1,), b"1")[8:])
    with pytest.raises(ValueError, match=r"npy format \(9, 0\) is not accepted"):
        read_npz(tmp_path / "a.npz", ["a"])


def test_missing_data_say_where_they_were_looked_for_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXUNLEARN_DATA", raising=False)
    message = (
        f"no data for 'cifar10'. Looked for: {tmp_path}/cifar10/cifar10.npz, {tmp_path}/cifar10.npz"
        ".*--data-dir.*JAXUNLEARN_DATA.*Nothing is ever downloaded.*kriz/cifar.*savez_compressed"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load("cifar10", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere, since no folder was given"):
        load("mnist")


# --- the real files, where they are ---------------------------------------------------------------


real_data = pytest.mark.skipif(
    not os.environ.get("JAXUNLEARN_DATA"), reason="JAXUNLEARN_DATA names no folder of data files"
)


@real_data
def test_mnist_is_the_published_mnist():
    source = mnist(validation=0)
    assert source.train["y"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert source.test["y"][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # Background pixels are -mean / std of the published 0.1307 and 0.3081.
    assert source.train["x"].min() == pytest.approx(-0.1307 / 0.3081, abs=2e-4)
    assert [len(getattr(source, split)["y"]) for split in SPLITS] == [60000, 0, 10000]


@real_data
@pytest.mark.slow
def test_cifar10_is_the_published_cifar10():
    source = cifar10(validation=0)
    assert source.train["y"][:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert source.test["y"][:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    np.testing.assert_array_equal(np.bincount(source.train["y"]), np.full(10, 5000))
    mean, std = np.array([125.307, 122.950, 113.865]), np.array([62.993, 62.089, 66.705])
    first = source.train["x"][0, 0, 0] * std + mean
    np.testing.assert_allclose(first, [59, 62, 63], atol=1e-2)
    first = source.test["x"][0, 0, 0] * std + mean
    np.testing.assert_allclose(first, [158, 112, 49], atol=1e-2)


@real_data
@pytest.mark.slow
def test_cifar100_nests_its_fine_classes_in_the_published_superclasses():
    source = cifar100("coarse")
    assert source.num_classes == 20 and len(source.label_names["fine"]) == 100
    for name, superclass in (("cattle", 11), ("rocket", 19), ("apple", 4), ("worm", 13)):
        fine = source.label_names["fine"].index(name)
        assert set(source.train["y"][source.train["fine"] == fine]) == {superclass}
