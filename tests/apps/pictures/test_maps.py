import numpy as np

from dolg_tf.apps.pictures import maps as descriptor_maps


def test_maps_are_told_in_words():
    values = np.array([[50.0, 50, 50], [50, 50, 90]])
    maps = {"attention": values, "orthogonal_norm": values / 10, "explained_energy": values / 100}
    text = descriptor_maps.describe_maps("Query a", maps)
    assert text.startswith("Query a: ") and "2 x 3 cells" in text
    assert "from 50 to 90, strongest at the bottom right" in text
    assert "norm of the orthogonal part from 5 to 9" in text
    assert "explains 50 to 90 % of the energy, 57 % on average" in text
    maps["attention"] = values[::-1, ::-1]
    assert "strongest at the top left" in descriptor_maps.describe_maps("Query a", maps)
    assert set(descriptor_maps.MAPS) == set(maps)
