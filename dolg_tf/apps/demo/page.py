"""The demo's page: its layout and its events."""

import functools
import logging
import pathlib
from collections.abc import Iterator, Sequence

from dolg_tf.apps.demo import html
from dolg_tf.apps.demo.search import OWN_SCALES, Added, Engine, Query
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

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
_AT_ONCE = 4  # answers that are computed at the same time; others wait in line
_WAITING = 64  # visitors in that line
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
        self._read = functools.partial(engine.read, max_bytes=max_bytes, max_pixels=max_pixels)

    # --- what happens --------------------------------------------------------------------

    def take(self, file: str | None, scales, reranking, k, added) -> Iterator[tuple]:
        """Reads a photo and searches for the whole of it.

        Yields the photo, its HTML, its box, the emptied file field, the answer and the map. When
        the file is not a photo, the previous photo disappears too: its answer would seem to belong
        to the file.
        """
        import gradio

        query, said = None, html.welcome(self._engine.index)
        try:
            if file is not None:
                query = self._read(pathlib.Path(file).read_bytes())
        except (InputError, OSError) as error:
            said = html.message(_words(error))
        width, height = (query.width, query.height) if query else (0, 0)
        yield query, html.stage(query), 0, 0, width, height, None, said, ""
        box = (0, 0, width, height)
        for shown in self.search(query, *box, scales, reranking, k, added):
            yield *(gradio.skip() for _ in range(7)), *shown

    def search(
        self, query: Query | None, left, top, right, bottom, scales, reranking, k, added
    ) -> Iterator[tuple]:
        """Yields the answer to a photo, its box and the controls, and then the map."""
        import gradio

        if query is None:
            yield gradio.skip(), gradio.skip()
            return
        whole = (0, 0, query.width, query.height)
        given = (left, top, right, bottom)
        box = tuple(y if x is None else x for x, y in zip(given, whole, strict=True))
        try:
            found = self._engine.search(query, box, scales, reranking, int(k), added)
            yield (
                html.answer(found, self._engine.index, scales, reranking),
                gradio.skip(),
            )
            yield gradio.skip(), html.attention(self._engine.attention(query, box))
        except InputError as error:
            yield html.message(str(error)), ""

    def press(self, query: Query | None, *controls) -> Iterator[tuple]:
        """As `search`, with a message when there is no photo yet."""
        if query is None:
            yield html.message(_NO_PHOTO), ""
        else:
            yield from self.search(query, *controls)

    def add(self, paths: Sequence[str] | None, added: Added | None) -> Iterator[tuple]:
        """Adds files for this visitor; yields the added photos and a message about them."""
        import gradio

        paths = sorted(paths or ())
        known = set() if added is None else set(added.files)
        wrong, twice, over = [], 0, 0
        for number, path in enumerate(map(pathlib.Path, paths), 1):
            file = f"{path.parent.name}/{path.name}"  # Gradio's folder is a hash of the contents
            if file in known:
                twice += 1
            elif len(known) >= self._max_added:
                over += 1
            else:
                try:
                    added = self._engine.add(added, file, self._read(path.read_bytes()))
                    known.add(file)
                except (InputError, OSError) as error:
                    wrong.append(f"{path.name}: {_words(error)}")
            if number < len(paths):
                yield gradio.skip(), html.lines(f"{number} of {len(paths)} files ...")
        notes = [f"Left out: {text}" for text in wrong[:3]]
        notes += [f"Left out: {len(wrong) - 3} more."] if len(wrong) > 3 else []
        notes += [f"Already added: {twice}."] if twice else []
        notes += [f"Left out, as there is no room for more: {over}."] if over else []
        yield added, html.added(len(known), notes, self._max_added)

    # --- what stands where ---------------------------------------------------------------

    def build(self):
        """Returns the page as `gradio.Blocks`."""
        import gradio

        # Uploads are deleted when they are ten minutes old; by then they have long been read.
        with gradio.Blocks(
            title="DOLG landmark search", analytics_enabled=False, delete_cache=(60, 600)
        ) as blocks:
            query, added = gradio.State(), gradio.State()
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
                "<p>Your photos stay on the machine that runs this page, and are forgotten an "
                "hour after you close it. Nothing is added to the index on its disk.</p>",
                elem_id="foot",
            )
            shown = [answer, attention]
            controls = [query, *photo["box"], *options["controls"], added]
            self._connect(photo, options, query, added, controls, shown)
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
                html.stage(None),
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

    def _connect(self, photo: dict, options: dict, query, added, controls, shown) -> None:
        import gradio

        private = {"api_visibility": "private"}
        last = private | {"trigger_mode": "always_last", "show_progress": "minimal"}
        box, told = photo["box"], options["told"]
        taken = [query, photo["stage"], *box, photo["file"], *shown]
        photo["file"].upload(
            self.take,
            [photo["file"], *options["controls"], added],
            taken,
            show_progress="minimal",
            **private,
        )
        here = {"fn": None, "queue": False, **private}
        drawn = photo["stage"].box_drawn(js="() => window.queryBox.pixels()", outputs=box, **here)
        drawn.then(self.search, controls, shown, **last)
        whole = photo["whole"].click(
            js="() => { window.queryBox.show(0, 0, 1e9, 1e9); return window.queryBox.pixels(); }",
            outputs=box,
            **here,
        )
        whole.then(self.search, controls, shown, **last)
        show = "(...box) => window.queryBox.show(...box)"
        gradio.on([field.input for field in box], js=show, inputs=box, **here)
        gradio.on(
            [photo["search"].click, *(field.submit for field in box)],
            self.press,
            controls,
            shown,
            concurrency_limit=_AT_ONCE,
            **last,
        )
        scales, reranking, k = options["controls"]
        gradio.on([scales.input, reranking.input, k.release], self.search, controls, shown, **last)
        for button in options["uploads"]:
            button.upload(
                self.add, [button, added], [added, told], concurrency_limit=1, **private
            ).success(self.search, controls, shown, **last)
        options["forget"].click(lambda: (None, ""), None, [added, told], **private).then(
            self.search, controls, shown, **last
        )

    def launch(self, blocks, port: int, gate: Sequence, max_bytes: int) -> str:
        """Serves the page on 127.0.0.1 in threads, and returns its address.

        Args:
          blocks: the page.
          port: on 127.0.0.1.
          gate: Starlette middleware in front of everything.
          max_bytes: largest file that may be uploaded.
        """
        import gradio

        blocks.queue(max_size=_WAITING, default_concurrency_limit=_AT_ONCE, api_open=False)
        fonts = {"font": _SYSTEM_FONTS, "font_mono": _MONOSPACE}
        blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            allowed_paths=[],
            state_session_capacity=_WAITING,
            max_file_size=max_bytes,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            num_workers=0,
            app_kwargs={"middleware": list(gate)},
            theme=gradio.themes.Base(primary_hue="teal", neutral_hue="slate", **fonts).set(
                **_COLOURS
            ),
            css=(_HERE / "demo.css").read_text(encoding="utf-8"),
        )
        return f"http://127.0.0.1:{port}"


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return "The file could not be read; choose it again."
    return str(error)
