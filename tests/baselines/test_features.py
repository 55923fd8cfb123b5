"""What is computed of stored runs: once, of the right scan, and the same from a stream as from a whole."""

import os
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from small_autoencoders import save_f32
from small_cohort import AFFINE, PREPROCESSING, write_atlas, write_cohort

from tablet_hf import TabletFeatureExtractor
from tablet_hf.baselines.connectivity import atlas_regions
from tablet_hf.baselines.features import RegionTimeSeries, RunCache, find_scans, mean_token
from tablet_hf.datasets import TokenDataset, export_parquet
from tablet_hf.errors import InputError
from tablet_hf.grid import grid_affine
from tablet_hf.tokens import slices_to_volumes, tokens_to_latents

PEOPLE = [
    {"subject": "01", "coupling": 0.5, "frames": [12, 7], "phenotypes": {"age": 30}},
    {"subject": "02", "coupling": 0.0, "frames": [9], "phenotypes": {"age": 40}},
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with scans, a store and an atlas; read only."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, PEOPLE)
    write_atlas(folder / "atlas.nii.gz")
    return folder


@pytest.fixture
def store(cohort):
    return TokenDataset.load(cohort / "store")


@pytest.fixture
def regions(cohort):
    return atlas_regions(cohort / "atlas.nii.gz")


class TestCache:
    def test_what_was_written_is_read(self, store, tmp_path):
        cache, values = RunCache(tmp_path / "cache"), np.arange(6.0, dtype=np.float32).reshape(2, 3)
        assert cache.read(store.runs[0], "courses") is None
        cache.write(store.runs[0], "courses", values)
        found = cache.read(store.runs[0], "courses")
        assert found.dtype == np.float32
        assert np.array_equal(found, values)
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]

    def test_other_runs_tokens_and_things_have_files_of_their_own(self, store, tmp_path):
        cache, run = RunCache(tmp_path), store.runs[0]
        cache.write(run, "courses", np.zeros(3))
        assert cache.read(store.runs[1], "courses") is None
        assert cache.read(replace(run, sha256="0" * 64), "courses") is None
        assert cache.read(run, "mean token") is None

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
    def test_a_damaged_file_is_not_read(self, store, tmp_path, damage):
        cache, run = RunCache(tmp_path), store.runs[0]
        cache.write(run, "courses", np.zeros(300))
        path = cache.path(run, "courses")
        if damage == "other":
            cache.write(run, "others", np.ones(3))
            shutil.copyfile(cache.path(run, "others"), path)
        else:
            content = path.read_bytes()
            path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no archive"}[damage])
        assert cache.read(run, "courses") is None

    def test_without_a_folder_it_lasts_as_long_as_it_is_held(self, store):
        cache = RunCache()
        cache.write(store.runs[0], "courses", np.ones(2))
        folder = cache.folder
        assert cache.read(store.runs[0], "courses").tolist() == [1, 1]
        del cache
        assert not folder.exists()


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
    def test_they_are_known_by_name_and_size_wherever_they_lie(self, cohort, store, tmp_path):
        shutil.copytree(cohort / "scans", tmp_path / "a" / "b", copy_function=shutil.copyfile)  # new times
        found = find_scans(store, tmp_path)
        assert not found.problems
        for run in store.runs:
            assert found.paths[run.key].name == run.scan["name"]
            assert tmp_path in found.paths[run.key].parents

    def test_exports_do_not_tell_their_scans(self, cohort, store, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
        exported = TokenDataset.load(export_parquet(store, tmp_path / "export"))
        found = find_scans(exported, cohort / "scans")
        assert not found.paths
        assert set(found.problems) == {run.key for run in store.runs}
        assert "give the store" in found.problems["sub-01_run-1"]

    def test_of_several_the_one_of_the_same_time_is_taken(self, cohort, store, tmp_path):
        shutil.copytree(cohort / "scans", tmp_path / "copies", copy_function=shutil.copyfile)
        found = find_scans(store, [tmp_path, cohort / "scans"])
        assert not found.problems
        assert all(cohort in path.parents for path in found.paths.values())

    def test_two_that_agree_in_all_are_told_and_not_guessed(self, cohort, store, tmp_path):
        for name in ("a", "b"):
            shutil.copytree(cohort / "scans", tmp_path / name)
        found = find_scans(store, tmp_path)
        assert not found.paths
        assert "2 files are called sub-01_run-1_bold.nii" in found.problems["sub-01_run-1"]

    def test_links_to_one_file_are_one(self, cohort, store, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).symlink_to(cohort / "scans", target_is_directory=True)
        (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
        assert len(find_scans(store, tmp_path).paths) == 3

    def test_missing_and_changed_ones_are_told(self, cohort, store, tmp_path):
        shutil.copytree(cohort / "scans", tmp_path / "scans")
        first, second, third = sorted((tmp_path / "scans").rglob("*.nii"))
        first.unlink()
        second.write_bytes(second.read_bytes() + b"more")
        found = find_scans(store, tmp_path)
        assert list(found.paths.values()) == [third]
        assert "no file is called sub-01_run-1_bold.nii" in found.problems["sub-01_run-1"]
        assert "it has changed" in found.problems["sub-01_run-2"]

    def test_a_name_that_runs_share_needs_time_or_the_subject_in_the_path(self, cohort, store, tmp_path):
        source = cohort / "scans" / "sub-02" / "sub-02_run-1_bold.nii"
        for subject in ("01", "02", "03"):
            (tmp_path / subject).mkdir()
            shutil.copyfile(source, tmp_path / subject / "bold.nii")
        size, own_time = source.stat().st_size, (tmp_path / "03" / "bold.nii").stat().st_mtime_ns
        scan = {"name": "bold.nii", "bytes": size, "modified_ns": 1}

        def paths(**times):
            runs = [
                replace(store.runs[0], key=subject, subject=subject, scan=scan | {"modified_ns": times.get(name, 1)})
                for name, subject in (("first", "01"), ("second", "02"))
            ]
            changed = TokenDataset(store.folder, store.settings, runs)
            found = find_scans(changed, tmp_path)
            return {key: path.parent.name for key, path in found.paths.items()}, found.problems

        assert paths() == ({"01": "01", "02": "02"}, {})
        os.utime(tmp_path / "03" / "bold.nii", ns=(own_time, 12345))
        assert paths(first=12345)[0] == {"01": "03", "02": "02"}
        # Size alone would take the scan of another person where his own is missing.
        shutil.rmtree(tmp_path / "02")
        found, problems = paths()
        assert found == {"01": "01"}
        assert "neither time nor path" in problems["02"]

    def test_one_file_is_not_taken_for_two_runs(self, cohort, store):
        doubled = [store.runs[2], replace(store.runs[2], key="again")]
        found = find_scans(TokenDataset(store.folder, store.settings, doubled), cohort / "scans")
        assert not found.paths
        assert set(found.problems) == {"again", store.runs[2].key}

    def test_a_folder_that_is_none(self, store, tmp_path):
        with pytest.raises(InputError, match="no such folder"):
            find_scans(store, tmp_path / "none")


def masked_by_nilearn(labels, image):
    from nilearn.maskers import NiftiLabelsMasker

    return NiftiLabelsMasker(labels, standardize=None, resampling_target="data", reports=False).fit_transform(image)


class TestCoursesOfScans:
    def test_they_are_those_of_nilearn(self, cohort, store, regions):
        courses = RegionTimeSeries(store, find_scans(store, cohort / "scans"))
        for run in range(3):
            expected = masked_by_nilearn(cohort / "atlas.nii.gz", courses.scans.paths[store.runs[run].key])
            assert courses.of(run, regions) == pytest.approx(expected, rel=1e-5)

    def test_a_scan_is_read_once(self, cohort, store, regions, tmp_path):
        shutil.copytree(cohort / "scans", tmp_path / "scans")
        found, told = find_scans(store, tmp_path / "scans"), []
        courses = RegionTimeSeries(store, found, cache=RunCache(tmp_path / "cache"))
        courses.prepare([0, 1], regions, lambda done, total: told.append((done, total)))
        assert told == [(0, 19), (12, 19), (19, 19)]
        expected = [courses.of(run, regions) for run in range(3)]
        shutil.rmtree(tmp_path / "scans")
        again = RegionTimeSeries(store, found, cache=RunCache(tmp_path / "cache"))
        again.prepare([0, 1, 2], regions)
        assert all(np.array_equal(again.of(run, regions), expected[run]) for run in range(3))

    def test_other_regions_are_other_courses(self, cohort, store, regions, tmp_path):
        labels = np.where(regions.labels == 6, 0, regions.labels).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "other.nii")
        courses = RegionTimeSeries(store, find_scans(store, cohort / "scans"), cache=RunCache(tmp_path / "cache"))
        assert courses.of(0, regions).shape == (12, 6)
        assert courses.of(0, atlas_regions(tmp_path / "other.nii")).shape == (12, 5)

    def test_a_scan_of_another_length_is_refused(self, cohort, store, regions):
        runs = [replace(store.runs[0], num_frames=13), *store.runs[1:]]
        changed = TokenDataset(store.folder, store.settings, runs)
        courses = RegionTimeSeries(changed, find_scans(changed, cohort / "scans"))
        with pytest.raises(InputError, match=r"it has 12 frames, but the tokens of sub-01_run-1 13"):
            courses.prepare([0, 1, 2], regions)

    def test_a_scan_that_was_not_found_is_told(self, store, regions, tmp_path):
        with pytest.raises(InputError, match=r"sub-01_run-1: no file is called sub-01_run-1_bold.nii"):
            RegionTimeSeries(store, find_scans(store, tmp_path)).of(0, regions)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder with a small f32 autoencoder of random weights."""
    return save_f32(tmp_path_factory.mktemp("autoencoder"))


class TestDecodedCourses:
    def test_they_are_the_means_of_the_decoded_volumes(self, cohort, autoencoder, regions, tmp_path, monkeypatch):
        extractor = TabletFeatureExtractor(str(autoencoder), signal="percent_change")
        _ = extractor.slice_autoencoder
        store = write_cohort(tmp_path, PEOPLE[1:], preprocessing=extractor.to_dict())
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
        told = []
        courses = RegionTimeSeries(store, None, cache=RunCache(tmp_path / "cache"))
        courses.prepare([0], regions, lambda *done: told.append(done))
        assert courses.is_decoded
        assert courses.of(0, regions) == pytest.approx(expected, abs=1e-5)
        assert expected.std(0).min() > 1e-4
        # Only slices with a region in them, eight frames at a time.
        assert at_once == [8 * 16, 16]
        assert told == [(0, 9), (8, 9), (9, 9)]
        again = RegionTimeSeries(store, None, cache=RunCache(tmp_path / "cache"))
        assert again.of(0, regions) == pytest.approx(expected, abs=1e-5)
        assert len(at_once) == 2

    def test_without_the_autoencoder_of_the_tokens_it_is_told(self, tmp_path, regions):
        store = write_cohort(tmp_path, PEOPLE[1:], preprocessing=PREPROCESSING | {"autoencoder": "of/nobody"})
        with pytest.raises(InputError, match="of/nobody"):
            RegionTimeSeries(store, None).of(0, regions)
