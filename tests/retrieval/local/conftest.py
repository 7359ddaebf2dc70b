import numpy as np
import pytest
from PIL import Image

SHAPES = [(40, 50), (50, 40), (33, 47)]


@pytest.fixture
def photos(tmp_path):
    """A folder of ten photos."""
    (tmp_path / "photos").mkdir()
    for number in range(10):
        image = np.random.default_rng(number).integers(0, 256, (*SHAPES[number % 3], 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"photos/{number}.png")
    return tmp_path / "photos"
