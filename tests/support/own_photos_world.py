"""A folder of photos, and a network that describes them by their colour, without TensorFlow."""

import dataclasses

import local_sets
import numpy as np
from PIL import Image
from place_rows import photos_of

from dolg_tf.pipelines.own_photos import command
from dolg_tf.pipelines.own_photos.config import SearchConfig
from dolg_tf.stage import tables

PLACES = [6] * 12  # photos of each


class Network:
    """Describes a photo by the number that its colour is; remembers which it described."""

    has_maps = False

    def __init__(self):
        self.rows, self.places = photos_of([*PLACES, 1])
        self.described, self.fails_after = [], None
        self.looked_at, self.stops_after = [], None

    def describe(self, images, scales=()):
        numbers = [int(red) + int(green) for red, green, _ in images[:, 0, 0]]
        if images.shape[1:3] != (64, 64):  # not the blank one
            self.described += numbers
            if self.fails_after is not None and len(self.described) > self.fails_after:
                raise KeyboardInterrupt
        return self.rows[numbers]

    def local_of(self, image, scales, most, threshold):
        """Finds features that most photos of a place share, seen from elsewhere."""
        number = int(image[0, 0, 0]) + int(image[0, 0, 1])
        if self.stops_after is not None and len(self.looked_at) == self.stops_after:
            raise KeyboardInterrupt
        self.looked_at.append(number)
        features = local_sets.draw(np.random.default_rng(number // 6), 40, 64, (1000, 1000))
        if number % 6 == 5:  # its own alone
            features = local_sets.draw(np.random.default_rng(number), 40, 64, (1000, 1000))
        moved = (1 + number / 100) * features.positions + number
        return dataclasses.replace(features, positions=moved.astype(np.float32))


def draw(path, number, suffix="png"):
    """Draws the photo that the network describes by this row, 72 being of no place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (min(number, 255), max(0, number - 255), number % 7)
    Image.new("RGB", (24, 16), colour).save(path, suffix)
    return path


class World:
    """A folder of photos, and commands on it."""

    def __init__(self, folder, network):
        self.folder, self.network, self.kept = folder / "photos", network, folder / "kept"
        for number, place in enumerate(network.places[:-1]):
            draw(self.folder / f"place_{place}" / f"{number}.png", number)

    def search(self, *photos, query="", **options):
        """Runs the command; returns the rows of its answers, [] without a query."""
        query = query or self.folder / "place_0" / "0.png"
        given = {"kept": str(self.kept), "query": str(query)} | options
        self.network.described.clear()
        command.search(SearchConfig(photos=tuple(map(str, photos or [self.folder])), **given))
        found = self.kept / "found.csv"
        return [row for _, row in tables.read_table(found, ["query"], ["rank"], ["id"], ["score"])]


def numbers(ids):
    """The numbers of photos by their ids."""
    return np.array([int(id_.rpartition("/")[2].partition(".")[0]) for id_ in ids])
