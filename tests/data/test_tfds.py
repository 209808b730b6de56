"""TFDS directories written and read for real, without TensorFlow."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.data.sources import digits, load
from jaxunlearn.data.tfds import tfds_source

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("PIL")


def png(pixels):
    """An array (H, W) uint8 as the bytes of a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write(root, rows, *, ids="integer", file_format="array_record", name="digits_png"):
    """A TFDS directory of `rows`: split -> columns of raw images `u`, labels `y`, ids `id`."""
    id_feature = {
        "integer": {"id": tfds.features.Scalar(np.int64)},
        "text": {"id": tfds.features.Text()},
        "none": {},
    }[ids]
    features = {
        "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=10),
        "writer": tfds.features.Scalar(np.int32),
        **id_feature,
    }

    class DigitsPng(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # else TFDS looks for checksums beside this file

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in rows}

        def _generate_examples(self, split):
            columns = rows[split]
            for u, y, id in zip(columns["u"], columns["y"], columns["id"], strict=True):
                named = {"integer": {"id": int(id)}, "text": {"id": f"{split}_{id:05d}"}}
                example = {"image": png(u), "label": int(y), "writer": int(id) % 7}
                yield f"{split}-{id}", example | named.get(ids, {})

    DigitsPng.name = name
    builder = DigitsPng(data_dir=str(root), file_format=file_format)
    builder.download_and_prepare(file_format=file_format)
    return Path(str(builder.data_path))


def raw_digits(count=None):
    """The splits of the embedded digits with pixels as stored (0..16)."""
    source = digits()
    return {
        split: {
            "u": np.round(columns["x"][:count] * 16).astype(np.uint8),
            "y": columns["y"][:count],
            "id": columns["id"][:count],
        }
        for split, columns in (
            ("train", source.train),
            ("validation", source.validation),
            ("test", source.test),
        )
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write(root, raw_digits())
    return root


def test_digits_written_as_png_records_come_back_bit_identical(whole):
    expected = digits()
    source = tfds_source("digits_png", data_dir=whole, maximum=16.0, standardise=False)
    for split in ("train", "validation", "test"):
        got, want = getattr(source, split), getattr(expected, split)
        for column in ("x", "y", "id"):
            assert got[column].dtype == want[column].dtype
            np.testing.assert_array_equal(got[column], want[column])
        np.testing.assert_array_equal(got["writer"], want["id"] % 7)
    assert source.class_names == expected.class_names


def test_records_on_disk_are_shuffled_and_the_source_is_not(whole):
    builder = tfds.builder_from_directory(str(whole / "digits_png" / "1.0.0"))
    on_disk = [int(row["id"]) for row in builder.as_data_source(split="train")]
    assert on_disk != sorted(on_disk)
    ids = tfds_source("digits_png", data_dir=whole).train["id"]
    np.testing.assert_array_equal(ids, np.sort(on_disk))


def test_reading_never_imports_tensorflow(whole):
    program = (
        "import sys; from jaxunlearn.data.tfds import tfds_source; "
        f"source = tfds_source('digits_png', data_dir={str(whole)!r}); "
        "assert len(source.train['y']) == 1200; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tensorflow" not in sys.modules


def test_load_finds_a_tfds_directory_by_name(whole, monkeypatch):
    monkeypatch.setenv("JAXUNLEARN_DATA", str(whole))
    by_name = load("tfds:digits_png")
    by_path = tfds_source(whole / "digits_png" / "1.0.0")
    assert by_name.digest == by_path.digest
    assert by_name.name == "tfds:digits_png"


def test_standardised_images_have_zero_mean_and_unit_deviation_in_train(whole):
    x = tfds_source("digits_png", data_dir=whole).train["x"].astype(np.float64)
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-6)


def test_text_ids_number_the_examples_in_sorted_order(tmp_path):
    rows = raw_digits(20)
    write(tmp_path, rows, ids="text")
    source = tfds_source("digits_png", data_dir=tmp_path, maximum=16.0, standardise=False)
    splits = (source.train, source.validation, source.test)
    np.testing.assert_array_equal(np.concatenate([s["id"] for s in splits]), np.arange(60))
    np.testing.assert_array_equal(source.train["x"] * 16, rows["train"]["u"])


def test_without_an_id_feature_ids_come_from_content_not_from_position(tmp_path):
    rows = raw_digits(20)
    backwards = {split: {k: v[::-1] for k, v in cols.items()} for split, cols in rows.items()}
    for cols in backwards.values():
        cols["id"] = cols["id"] + 7000  # other keys, so another order on disk; writer is unchanged
    write(tmp_path / "a", rows, ids="none")
    write(tmp_path / "b", backwards, ids="none")
    a = tfds_source("digits_png", data_dir=tmp_path / "a")
    b = tfds_source("digits_png", data_dir=tmp_path / "b")
    assert a.digest == b.digest
    assert len(np.unique(a.train["id"])) == 20


def test_integer_ids_that_restart_in_each_split_are_shifted_apart(tmp_path):
    rows = {k: cols | {"id": np.arange(10)} for k, cols in raw_digits(10).items()}
    write(tmp_path, rows)
    source = tfds_source("digits_png", data_dir=tmp_path)
    for start, split in enumerate((source.train, source.validation, source.test)):
        np.testing.assert_array_equal(split["id"], 10 * start + np.arange(10))


def test_without_a_validation_split_one_is_taken_from_train(tmp_path):
    rows = raw_digits(100)
    del rows["validation"]
    write(tmp_path, rows)
    source = tfds_source("digits_png", data_dir=tmp_path, validation=0.2)
    assert (len(source.train["y"]), len(source.validation["y"])) == (80, 20)
    together = np.concatenate([source.train["id"], source.validation["id"]])
    np.testing.assert_array_equal(np.sort(together), np.sort(rows["train"]["id"]))


def test_splits_can_be_renamed(tmp_path):
    rows = raw_digits(30)
    write(tmp_path, {"train": rows["train"], "held_out": rows["test"]})
    source = tfds_source(
        "digits_png", data_dir=tmp_path, splits={"train": "train", "test": "held_out"}
    )
    np.testing.assert_array_equal(source.test["id"], np.sort(rows["test"]["id"]))
    with pytest.raises(ValueError, match="has the splits .* must name one of them for 'train'"):
        tfds_source("digits_png", data_dir=tmp_path)


def test_an_integer_id_that_repeats_is_refused(tmp_path):
    rows = {k: dict(cols) for k, cols in raw_digits(6).items()}
    write(tmp_path, rows)
    with pytest.raises(ValueError, match="feature 'writer' repeats; an id names one example"):
        tfds_source("digits_png", data_dir=tmp_path, id="writer")


def test_an_absent_feature_names_the_nearest(whole):
    with pytest.raises(ValueError, match=r"no feature 'images'. Did you mean 'image'\?"):
        tfds_source("digits_png", data_dir=whole, image="images")
    with pytest.raises(ValueError, match=r"no feature 'idd'. Did you mean 'id'\?"):
        tfds_source("digits_png", data_dir=whole, id="idd")


def test_a_missing_data_set_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"Looked for .*{tmp_path}/mnist.*--data-dir"):
        load("tfds:mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="Nothing is ever downloaded"):
        tfds_source(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["..", "a..b", ".hidden", "-x"])
def test_a_name_that_climbs_out_of_the_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="expected a plain name"):
        tfds_source(name, data_dir=tmp_path)


def test_a_format_without_random_access_is_refused_with_the_cure(whole, tmp_path):
    copy = tmp_path / "digits_png" / "1.0.0"
    copy.mkdir(parents=True)
    for file in (whole / "digits_png" / "1.0.0").glob("*.json"):
        text = file.read_text().replace("array_record", "tfrecord")
        (copy / file.name).write_text(text)
    with pytest.raises(ValueError, match="without random access.*file_format='array_record'"):
        tfds_source("digits_png", data_dir=tmp_path)


def test_a_feature_class_from_elsewhere_is_refused_before_it_is_imported(whole, tmp_path):
    copy = tmp_path / "digits_png" / "1.0.0"
    copy.mkdir(parents=True)
    for file in (whole / "digits_png" / "1.0.0").glob("*.json"):
        (copy / file.name).write_text(file.read_text())
    features = json.loads((copy / "features.json").read_text())
    features["pythonClassName"] = "antigravity.Feature"
    (copy / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="antigravity.Feature.*not TFDS's own"):
        tfds_source("digits_png", data_dir=tmp_path)
    assert "antigravity" not in sys.modules
    (copy / "features.json").unlink()
    with pytest.raises(ValueError, match="no features.json"):
        tfds_source("digits_png", data_dir=tmp_path)


def test_several_configurations_must_be_told_apart(tmp_path):
    for config in ("small", "large"):
        (tmp_path / "faces" / config / "1.0.0").mkdir(parents=True)
        (tmp_path / "faces" / config / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several configurations: \['large', 'small'\]"):
        tfds_source("faces", data_dir=tmp_path)


def test_the_highest_version_is_read(whole, tmp_path):
    rows = raw_digits(5)
    newest = write(tmp_path, rows)
    newest.rename(newest.with_name("1.10.0"))
    old = tmp_path / "digits_png" / "1.9.0"
    old.mkdir()
    (old / "dataset_info.json").write_text("not even JSON: this one must not be opened")
    assert len(tfds_source("digits_png", data_dir=tmp_path).train["y"]) == 5
