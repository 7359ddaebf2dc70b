"""The demo's page: its layout and its events."""

import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dolg_tf.apps.demo import html
from dolg_tf.apps.demo.calls import SKIP, Event
from dolg_tf.apps.demo.search import OWN_SCALES, Engine, Query
from dolg_tf.apps.demo.uploads import Upload
from dolg_tf.apps.demo.visitors import Visitor
from dolg_tf.stage.config import InputError

_HERE = pathlib.Path(__file__).parent
_SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
# Text has a contrast of at least 4.5 to 1 with its background.
_COLOURS = {
    "body_text_color_subdued": "*neutral_500",
    "block_info_text_color": "*neutral_500",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_600",
}
_MONOSPACE = ("ui-monospace", "monospace")
_FAR = 1e9  # pixels; no box reaches farther
_NO_PHOTO = "Drop or choose a photo first."


class Page:
    """The page of an engine.

    Args:
      engine: answers the searches.
      max_bytes, max_pixels: largest photo that is accepted.
      max_added: photos that a visitor may add.
    """

    def __init__(self, engine: Engine, max_bytes: int, max_pixels: int, max_added: int):
        self._engine, self._max_added = engine, max_added
        self._max_bytes, self._max_pixels = max_bytes, max_pixels

    # --- what happens --------------------------------------------------------------------

    def take(self, visitor: Visitor, file: Upload | None, *controls) -> Iterator[tuple]:
        """Reads a photo and searches for the whole of it.

        Yields its HTML, its box, the emptied file field, the answer and the map. When the file is
        not a photo, the previous photo disappears too: its answer would seem to belong to the file.
        """
        visitor.query = None
        if file is None:
            yield "", 0, 0, 0, 0, None, html.welcome(self._engine.index), ""
            return
        try:
            query = self._read(file)
            image, picture = self._engine.image(query), self._engine.picture(query)
        except (InputError, OSError) as error:
            said = html.message(_words(error))
            yield "", 0, 0, 0, 0, None, said, ""
            return
        visitor.query = query
        box = (0, 0, query.width, query.height)
        yield html.stage(query, picture), *box, None, html.welcome(self._engine.index), ""
        for shown in self._answers(visitor, query, image, *controls):
            yield *(SKIP for _ in range(6)), *shown

    def _read(self, file: Upload) -> Query:
        return self._engine.read(file.path.read_bytes(), self._max_bytes, self._max_pixels)

    def search(self, visitor: Visitor, *values) -> Iterator[tuple]:
        """Yields the answer to the visitor's photo, for a box and the controls, and then the map.

        Args:
          visitor: whose photo.
          values: left, top, right, bottom, scales, re-ranking and number of photos.
        """
        query = visitor.query
        if query is None:
            yield SKIP, SKIP
            return
        whole = (0, 0, query.width, query.height)
        box = tuple(y if x is None else x for x, y in zip(values[:4], whole, strict=True))
        try:
            image = self._engine.image(query, box)
        except InputError as error:
            yield html.message(str(error)), ""
            return
        yield from self._answers(visitor, query, image, *values[4:])

    def _answers(
        self, visitor: Visitor, query: Query, image: np.ndarray, scales, reranking, k
    ) -> Iterator[tuple]:
        found = self._engine.search(image, scales, reranking, k, visitor.added)
        if visitor.query is not query:  # they chose another one meanwhile
            return
        yield html.answer(found, self._engine.index, scales, reranking), SKIP
        yield SKIP, html.attention(self._engine.attention(image))

    def press(self, visitor: Visitor, *values) -> Iterator[tuple]:
        """As `search`, with a message when there is no photo."""
        if visitor.query is None:
            yield html.message(_NO_PHOTO), ""
        else:
            yield from self.search(visitor, *values)

    def add(self, visitor: Visitor, files: Sequence[Upload]) -> Iterator[tuple]:
        """Adds files for this visitor; yields a message about them."""
        added = visitor.added
        known = set() if added is None else set(added.files)
        wrong, twice, over = [], 0, 0
        files = sorted(files, key=lambda file: file.name)
        for number, file in enumerate(files, 1):
            name = f"{file.digest}/{file.name}"
            if name in known:
                twice += 1
            elif len(known) >= self._max_added:
                over += 1
            else:
                try:
                    query = self._read(file)
                    added = visitor.added = self._engine.add(added, name, query)
                    known.add(name)
                except (InputError, OSError) as error:
                    wrong.append(f"{file.name}: {_words(error)}")
            if number < len(files):
                yield (html.lines(f"{number} of {len(files)} files ..."),)
        notes = [f"Left out: {text}" for text in wrong[:3]]
        notes += [f"Left out: {len(wrong) - 3} more."] if len(wrong) > 3 else []
        notes += [f"Already added: {twice}."] if twice else []
        notes += [f"Left out, as there is no room for more: {over}."] if over else []
        yield (html.added(len(known), notes, self._max_added),)

    def forget(self, visitor: Visitor) -> Iterator[tuple]:
        """Removes the photos that this visitor added."""
        visitor.added = None
        yield ("",)

    # --- what stands where ---------------------------------------------------------------

    def build(self):
        """Returns the page as `gradio.Blocks`."""
        import gradio

        with gradio.Blocks(title="DOLG landmark search", analytics_enabled=False) as blocks:
            count = len(self._engine.index)
            gradio.HTML(
                f"<h1>Landmark search</h1><p>Which of {count:,} photos show the same place?</p>",
                elem_id="head",
            )
            with gradio.Column(elem_id="page"):
                photo = self._photo_area()
                with gradio.Column(elem_id="answer-area"):
                    answer = gradio.HTML(html.welcome(self._engine.index), elem_id="answer")
                with gradio.Column(elem_id="map-area"):
                    attention = gradio.HTML("", elem_id="attention")
                options = self._options_area()
            gradio.HTML(
                "<p>Your photos stay in the memory of the machine that runs this page, and are "
                "forgotten an hour after your last search. Nothing is added to the index on its "
                "disk.</p>",
                elem_id="foot",
            )
            self._connect(photo, options, [answer, attention])
        return blocks

    def _photo_area(self) -> dict:
        import gradio

        with gradio.Column(elem_id="photo-area"):
            file = gradio.File(
                label="Photo",
                file_types=["image"],
                height=96,
                elem_id="file",
            )
            stage = gradio.HTML(
                "",
                js_on_load=(_HERE / "demo.js").read_text(encoding="utf-8"),
                elem_id="stage",
            )
            with gradio.Row(elem_id="box"):
                box = [
                    gradio.Number(0, label=name, precision=0, minimum=0, min_width=60)
                    for name in ("Left", "Top", "Right", "Bottom")
                ]
            with gradio.Row():
                whole = gradio.Button("Whole photo", size="md", min_width=80)
                search = gradio.Button("Search", variant="primary", size="md", min_width=80)
        return {"file": file, "stage": stage, "box": box, "whole": whole, "search": search}

    def _options_area(self) -> dict:
        import gradio

        rerankings = [(html.RERANK_WORDS[name], name) for name in self._engine.rerankings]
        with gradio.Column(elem_id="options-area"):
            scales = gradio.Radio(
                html.scale_choices(self._engine.scales),
                value=OWN_SCALES,
                label="Scales",
                info="sizes at which your photo is described; the descriptors are averaged",
            )
            reranking = gradio.Radio(
                rerankings,
                value="none",
                label="Re-ranking",
                info="a second look at the best photos",
                visible=len(rerankings) > 1,
            )
            k = gradio.Slider(4, 48, 12, step=4, label="Photos shown")
            with gradio.Accordion("Search your own photos too", open=False):
                gradio.HTML(
                    '<p class="notes">They are described here and searched together with the '
                    "index, for you alone, until you close this page.</p>",
                    elem_classes="plain",
                )
                with gradio.Row():
                    folder = gradio.UploadButton(
                        "Add a folder", file_count="directory", size="md", min_width=120
                    )
                    several = gradio.UploadButton(
                        "Add photos",
                        file_count="multiple",
                        file_types=["image"],
                        size="md",
                        min_width=120,
                    )
                    forget = gradio.Button("Remove them", size="md", min_width=120)
                told = gradio.HTML("", elem_id="added")
        return {
            "controls": [scales, reranking, k],
            "uploads": [folder, several],
            "forget": forget,
            "told": told,
        }

    def _connect(self, photo: dict, options: dict, shown: list) -> None:
        import gradio

        private = {"api_visibility": "private"}
        last = private | {"trigger_mode": "always_last", "show_progress": "minimal"}
        box, told = photo["box"], options["told"]
        controls = [*box, *options["controls"]]
        take, search, press = map(_asked, (self.take, self.search, self.press))
        photo["file"].upload(
            take,
            [photo["file"], *options["controls"]],
            [photo["stage"], *box, photo["file"], *shown],
            show_progress="minimal",
            **private,
        )
        here = {"fn": None, "queue": False, **private}
        drawn = photo["stage"].box_drawn(js="() => window.queryBox.pixels()", outputs=box, **here)
        drawn.then(search, controls, shown, **last)
        whole = photo["whole"].click(
            js="() => { window.queryBox.show(0, 0, 1e9, 1e9); return window.queryBox.pixels(); }",
            outputs=box,
            **here,
        )
        whole.then(search, controls, shown, **last)
        show = "(...box) => window.queryBox.show(...box)"
        gradio.on([field.input for field in box], js=show, inputs=box, **here)
        pressed = [photo["search"].click, *(field.submit for field in box)]
        gradio.on(pressed, press, controls, shown, **last)
        scales, reranking, k = options["controls"]
        gradio.on([scales.input, reranking.input, k.release], search, controls, shown, **last)
        for button in options["uploads"]:
            button.upload(_asked(self.add, long=True), button, told, **private).success(
                search, controls, shown, **last
            )
        options["forget"].click(_asked(self.forget), None, told, **private).then(
            search, controls, shown, **last
        )

    def app(self, blocks):
        """Returns Gradio's application, for the page itself and its files.

        Args:
          blocks: the page.
        """
        import fastapi
        import gradio

        fonts = {"font": _SYSTEM_FONTS, "font_mono": _MONOSPACE}
        theme = gradio.themes.Base(primary_hue="teal", neutral_hue="slate", **fonts)
        return gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            blocks,
            "",
            server_name="127.0.0.1",
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            max_file_size=self._max_bytes,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme.set(**_COLOURS),
            css=(_HERE / "demo.css").read_text(encoding="utf-8"),
        )


# --- events ------------------------------------------------------------------------------


def _asked(answer: Callable[..., Iterator[tuple]], long: bool = False) -> Callable:
    """Returns what Gradio is given as the function of an event; `calls.py` calls `answer`."""

    def never(*values):
        yield from ()

    never.answer, never.long = answer, long
    return never


def events(blocks) -> dict[int, Event]:
    """Returns the events of a page, by Gradio's number."""
    found = {}
    for number, function in blocks.fns.items():
        answer = getattr(function.fn, "answer", None)
        if answer is not None:
            names = [part.elem_id for part in function.outputs]
            said = next(names.index(name) for name in ("answer", "added") if name in names)
            inputs = tuple(map(_check, function.inputs))
            found[number] = Event(answer, inputs, len(names), said, function.fn.long)
    return found


def _check(component) -> Callable:
    """Returns a function that takes a value of a component from JSON; see `calls.Event`."""
    kind = component.get_block_name()
    if kind == "file":
        return lambda value, claim: None if value is None else claim(_path(value))
    if kind == "uploadbutton":
        return lambda value, claim: [claim(_path(one)) for one in _list(value)]
    if kind == "radio":
        allowed = {value for _, value in component.choices}
        return lambda value, _: _one_of(value, allowed)
    if kind == "slider":
        return lambda value, _: round(_number(value, component.minimum, component.maximum))
    return lambda value, _: None if value is None else _number(value, -_FAR, _FAR)


def _path(value) -> object:
    if not isinstance(value, dict):
        raise ValueError("a file is an object with its path")
    return value.get("path")


def _list(value) -> list:
    if value is not None and not isinstance(value, list):
        raise ValueError("files are a list")
    return value or []


def _one_of(value, allowed: set[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{value!r:.40} is not one of {', '.join(sorted(allowed))}")
    return value


def _number(value, least: float, most: float) -> float:
    if type(value) not in (int, float) or not least <= value <= most:  # as NaN is not
        raise ValueError(f"{value!r:.40} is not a number from {least:g} to {most:g}")
    return float(value)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return "The file could not be read; choose it again."
    return str(error)
