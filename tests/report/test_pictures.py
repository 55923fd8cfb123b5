"""Slices of a volume stand upright, at the point asked for, in figures that pyplot does not keep."""

import matplotlib.image
import numpy as np

from tablet_hf.report.pictures import label_panel, nearest_voxel, new_figure, save_figure, show_slice


def test_slices_stand_upright_with_right_on_the_left(tmp_path):
    volume = np.zeros((24, 24, 24), dtype=np.float32)
    volume[0, :, -1] = 1  # x = 0 is the right, the last z the top of the head
    figure = new_figure(3, 3)
    panel = figure.subplots()
    shown = show_slice(panel, volume, axis=1, index=12, cmap="gray").get_array()
    label_panel(panel, title="coronal")
    assert shown[0, 0] == shown.sum() == 1
    assert [text.get_text() for text in panel.texts] == ["R", "L"]
    image = matplotlib.image.imread(save_figure(figure, tmp_path / "slice.png"))
    assert min(image.shape[:2]) > 300
    assert image.std() > 0.02


def test_the_voxel_nearest_to_a_point():
    index = nearest_voxel((-26.0, -56.0, 42.0), 96)
    assert index.tolist() == [61, 28, 60]  # (96 + 26) / 2, (-56 + 112) / 2, (42 + 78) / 2 of the FSL lattice


def test_pyplot_keeps_nothing():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    new_figure(3, 3).subplots()
    assert plt.get_fignums() == before
