"""What is computed of stored runs: once, of the right scan, and the same from a stream as from a whole."""

import os
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from small_autoencoders import save_f32
from small_cohort import AFFINE, PREPROCESSING, masked_by_nilearn, write_atlas, write_cohort

from tablet_hf import TabletFeatureExtractor
from tablet_hf.baselines.connectivity import atlas_regions
from tablet_hf.baselines.features import RegionTimeSeries, RunCache, match_scans, mean_token
from tablet_hf.datasets import TokenDataset, export_parquet
from tablet_hf.errors import InputError
from tablet_hf.grid import grid_affine
from tablet_hf.tokens import slices_to_volumes, tokens_to_latents

SUBJECTS = [
    {"subject": "01", "coupling": 0.5, "frames": [12, 7], "phenotypes": {"age": 30}},
    {"subject": "02", "coupling": 0.0, "frames": [9], "phenotypes": {"age": 40}},
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with scans, a store and an atlas; read only."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, SUBJECTS)
    write_atlas(folder / "atlas.nii.gz")
    return folder


@pytest.fixture
def store(cohort):
    return TokenDataset.load(cohort / "store")


@pytest.fixture
def regions(cohort):
    return atlas_regions(cohort / "atlas.nii.gz")


class TestCache:
    def test_a_feature_is_that_of_its_run_and_tokens(self, store, tmp_path):
        cache, values = RunCache(tmp_path / "cache"), np.arange(6.0, dtype=np.float32).reshape(2, 3)
        assert cache.read(store.runs[0], "time series") is None
        cache.write(store.runs[0], "time series", values)
        found = cache.read(store.runs[0], "time series")
        assert found.dtype == np.float32
        assert np.array_equal(found, values)
        run = store.runs[0]
        assert cache.read(store.runs[1], "time series") is None
        assert cache.read(replace(run, sha256="0" * 64), "time series") is None
        assert cache.read(run, "mean token") is None

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
    def test_a_damaged_file_is_not_read(self, store, tmp_path, damage):
        cache, run = RunCache(tmp_path), store.runs[0]
        cache.write(run, "time series", np.zeros(300))
        path = cache.path(run, "time series")
        if damage == "other":
            cache.write(run, "others", np.ones(3))
            shutil.copyfile(cache.path(run, "others"), path)
        else:
            content = path.read_bytes()
            path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no archive"}[damage])
        assert cache.read(run, "time series") is None


def test_the_mean_token_is_that_of_all_frames_and_kept(cohort, tmp_path):
    shutil.copytree(cohort / "store", tmp_path / "store")
    store, cache = TokenDataset.load(tmp_path / "store"), RunCache(tmp_path / "cache")
    expected = store.window(0).double().mean(0).reshape(-1).numpy()
    assert mean_token(store, 0, cache) == pytest.approx(expected, abs=1e-6)
    (tmp_path / "store" / store.runs[0].file).unlink()
    assert mean_token(TokenDataset.load(tmp_path / "store"), store.runs[0].key, cache) == pytest.approx(
        expected, abs=1e-6
    )


class TestFindingScans:
    @pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy2])
    def test_by_name_size_and_time_or_subject(self, cohort, store, tmp_path, copy):
        shutil.copytree(cohort / "scans", tmp_path / "a" / "b", copy_function=copy)
        found = match_scans(store, tmp_path)
        for run in store.runs:
            assert found[run.key].name == run.scan["name"]
            assert tmp_path in found[run.key].parents

    def test_of_several_the_one_of_the_same_time_is_taken(self, cohort, store, tmp_path):
        shutil.copytree(cohort / "scans", tmp_path / "copies", copy_function=shutil.copyfile)
        found = match_scans(store, [tmp_path, cohort / "scans"])
        assert len(found) == 3
        assert all(cohort in path.parents for path in found.values())

    def test_links_to_one_file_are_one(self, cohort, store, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).symlink_to(cohort / "scans", target_is_directory=True)
        (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
        assert len(match_scans(store, tmp_path)) == 3

    def test_ambiguous_missing_and_changed_files_are_left_out(self, cohort, store, tmp_path):
        for name in ("a", "b"):
            shutil.copytree(cohort / "scans", tmp_path / "twice" / name)
        assert match_scans(store, tmp_path / "twice") == {}
        shutil.copytree(cohort / "scans", tmp_path / "scans")
        first, second, third = sorted((tmp_path / "scans").rglob("*.nii"))
        first.unlink()
        second.write_bytes(second.read_bytes() + b"more")
        assert list(match_scans(store, tmp_path / "scans").values()) == [third]
        doubled = [store.runs[2], replace(store.runs[2], key="again")]
        assert match_scans(TokenDataset(store.folder, store.settings, doubled), cohort / "scans") == {}

    def test_exports_do_not_record_scans(self, cohort, store, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
        exported = TokenDataset.load(export_parquet(store, tmp_path / "export"))
        assert match_scans(exported, cohort / "scans") == {}

    def test_a_shared_name_needs_time_or_the_subject_in_the_path(self, cohort, store, tmp_path):
        source = cohort / "scans" / "sub-02" / "sub-02_run-1_bold.nii"
        for subject in ("01", "02", "03"):
            (tmp_path / subject).mkdir()
            shutil.copyfile(source, tmp_path / subject / "bold.nii")
        size, own_time = source.stat().st_size, (tmp_path / "03" / "bold.nii").stat().st_mtime_ns

        def found(first_time):
            scan = {"name": "bold.nii", "bytes": size}
            runs = [
                replace(store.runs[0], key=subject, subject=subject, scan=scan | {"modified_ns": time})
                for time, subject in ((first_time, "01"), (1, "02"))
            ]
            scans = match_scans(TokenDataset(store.folder, store.settings, runs), tmp_path)
            return {key: path.parent.name for key, path in scans.items()}

        assert found(1) == {"01": "01", "02": "02"}
        os.utime(tmp_path / "03" / "bold.nii", ns=(own_time, 12345))
        assert found(12345) == {"01": "03", "02": "02"}
        shutil.rmtree(tmp_path / "02")  # size alone would take the scan of another subject
        assert found(1) == {"01": "01"}

    def test_a_folder_that_does_not_exist(self, store, tmp_path):
        with pytest.raises(InputError, match="none"):
            match_scans(store, tmp_path / "none")


class TestTimeSeriesOfScans:
    def test_they_are_those_of_nilearn(self, cohort, store, regions):
        time_series = RegionTimeSeries(store, match_scans(store, cohort / "scans"))
        for run in range(3):
            expected = masked_by_nilearn(cohort / "atlas.nii.gz", time_series.scans[store.runs[run].key])
            assert time_series.of(run, regions) == pytest.approx(expected, rel=1e-5)

    def test_a_scan_is_read_once(self, cohort, store, regions, tmp_path):
        shutil.copytree(cohort / "scans", tmp_path / "scans")
        found, progress = match_scans(store, tmp_path / "scans"), []
        time_series = RegionTimeSeries(store, found, cache=RunCache(tmp_path / "cache"))
        time_series.prepare([0, 1], regions, lambda done, total: progress.append((done, total)))
        assert progress == [(12, 19), (19, 19), (19, 19)]
        expected = [time_series.of(run, regions) for run in range(3)]
        shutil.rmtree(tmp_path / "scans")
        again = RegionTimeSeries(store, found, cache=RunCache(tmp_path / "cache"))
        again.prepare([0, 1, 2], regions)
        assert all(np.array_equal(again.of(run, regions), expected[run]) for run in range(3))

    def test_other_regions_have_other_files(self, cohort, store, regions, tmp_path):
        labels = np.where(regions.labels == 6, 0, regions.labels).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "other.nii")
        time_series = RegionTimeSeries(store, match_scans(store, cohort / "scans"), cache=RunCache(tmp_path / "cache"))
        assert time_series.of(0, regions).shape == (12, 6)
        assert time_series.of(0, atlas_regions(tmp_path / "other.nii")).shape == (12, 5)

    def test_a_scan_of_another_length_is_refused(self, cohort, store, regions):
        runs = [replace(store.runs[0], num_frames=13), *store.runs[1:]]
        changed = TokenDataset(store.folder, store.settings, runs)
        time_series = RegionTimeSeries(changed, match_scans(changed, cohort / "scans"))
        with pytest.raises(InputError, match="12 frames"):
            time_series.prepare([0, 1, 2], regions)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with a small f32 autoencoder of random weights."""
    return save_f32(tmp_path_factory.mktemp("autoencoder"))


class TestDecodedTimeSeries:
    def test_they_are_the_means_of_the_decoded_volumes(self, cohort, autoencoder, regions, tmp_path, monkeypatch):
        extractor = TabletFeatureExtractor(str(autoencoder), signal="percent_change")
        _ = extractor.slice_autoencoder
        store = write_cohort(tmp_path, SUBJECTS[1:], preprocessing=extractor.to_dict())
        # All axial slices at once, put together to volumes.
        latents = tokens_to_latents(store.window(0).float(), 96)
        slices = torch.zeros(9, 3, 96, 96, 96)
        slices[:, 2] = extractor.slice_autoencoder.decode(latents[:, 2].flatten(0, 1)).unflatten(0, (9, 96))
        volumes = slices_to_volumes(slices)[:, 2].clamp(-1, 1).numpy()
        image = nibabel.Nifti1Image(np.moveaxis(volumes, 0, -1), grid_affine())
        expected = masked_by_nilearn(cohort / "atlas.nii.gz", image)

        at_once, decode = [], TabletFeatureExtractor.decode_slices

        def counted(self, latents):
            at_once.append(len(latents))
            return decode(self, latents)

        monkeypatch.setattr(TabletFeatureExtractor, "decode_slices", counted)
        progress = []
        time_series = RegionTimeSeries(store, None, cache=RunCache(tmp_path / "cache"))
        time_series.prepare([0], regions, lambda *done: progress.append(done))
        assert time_series.is_decoded
        assert time_series.of(0, regions) == pytest.approx(expected, abs=1e-5)
        assert expected.std(0).min() > 1e-4
        # Only slices with a region in them, eight frames at a time.
        assert at_once == [8 * 16, 16]
        assert progress == [(9, 9), (9, 9)]
        again = RegionTimeSeries(store, None, cache=RunCache(tmp_path / "cache"))
        assert again.of(0, regions) == pytest.approx(expected, abs=1e-5)
        assert len(at_once) == 2

    def test_without_the_autoencoder_of_the_tokens(self, tmp_path, regions):
        store = write_cohort(tmp_path, SUBJECTS[1:], preprocessing=PREPROCESSING | {"autoencoder": "lab/missing"})
        with pytest.raises(InputError, match="lab/missing"):
            RegionTimeSeries(store, None).of(0, regions)
