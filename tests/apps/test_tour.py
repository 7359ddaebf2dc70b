"""notebooks/tour.ipynb runs from top to bottom on what a quickstart leaves."""

import base64
import pathlib
import re

import nbclient
import nbformat
import pytest
import stand_in_saved_model as stand_in

from dolg_tf.data.procedural.write import ToyConfig, write_toy
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.stage import files

TOUR = pathlib.Path(__file__).parents[2] / "notebooks" / "tour.ipynb"


def _export(path: pathlib.Path) -> None:
    """Exports an untrained network."""
    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.modeling.model_dir import save_dolg
    from dolg_tf.serving.config import ExportConfig
    from dolg_tf.serving.export import export

    config = DolgConfig(backbone="resnet17_small", dilations=(1, 2), descriptor_size=16)
    save_dolg(build_dolg(config, seed=1), config, path.parent / "network", {"source": "test"})
    export(ExportConfig(model_dir=str(path.parent / "network"), output=str(path)))


def _quickstart(folder: pathlib.Path, write_model) -> pathlib.Path:
    """What the quickstart leaves, as far as the tour reads it."""
    sizes = {"landmarks": 2, "unseen_landmarks": 2, "photos_per_landmark": 1}
    toy = {"index_per_landmark": 4, "queries_per_landmark": 1, "size": 64, "processes": 1}
    write_toy(ToyConfig(output=str(folder / "photos"), **sizes, **toy))
    model = folder / "saved_model" / "trained"
    model.parent.mkdir()
    write_model(model)
    weights = files.read_json(model / "assets.extra/dolg.json")["weights_sha256"]
    extract(
        ExtractConfig(
            saved_model=str(model),
            images=str(folder / "photos/gnd_unseen.pkl"),
            image_root=str(folder / "photos"),
            subset="index",
            output=str(folder / "descriptors/trained" / weights[:12] / "index"),
        )
    )
    return folder


@pytest.mark.parametrize(
    "write_model", [stand_in.save, pytest.param(_export, marks=pytest.mark.slow)]
)
def test_the_tour_runs_from_top_to_bottom(tmp_path, write_model):
    run = _quickstart(tmp_path / "run", write_model)
    tour = nbformat.read(TOUR, as_version=4)
    (parameters,) = (cell for cell in tour.cells if "parameters" in cell.metadata.get("tags", ()))
    assert 'RUN = "../runs/quickstart"' in parameters.source
    parameters.source = f"RUN, QUERY = {str(run)!r}, 0"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(tour, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [
        (cell.source.split("(")[0].split("\n")[-1], output)
        for cell in tour.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    pictures = [source for source, output in shown if "image/png" in output.get("data", {})]
    assert [source for source in pictures if source.startswith("show")] == [
        "show_maps",
        "show_match",
        "show_match",
    ]
    assert len(pictures) == 4  # and the search
    for _, output in shown:
        picture = output.get("data", {}).get("image/png")
        assert picture is None or len(base64.b64decode(picture)) > 5000
    (told,) = (output["text"] for _, output in shown if output.get("name") == "stdout")
    assert re.search(r"same landmark -?\d\.\d{3}, another landmark -?\d\.\d{3}", told)


def test_the_tour_is_kept_without_outputs():
    tour = nbformat.read(TOUR, as_version=4)
    nbformat.validate(tour)
    code = [cell for cell in tour.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    # The same links as a page: they lead somewhere.
    text = "\n".join(cell.source for cell in tour.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((TOUR.parent / link).exists() for link in links)
