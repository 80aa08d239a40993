"""The app's page: `sam2-keyframe app`. What it does is `studio.Studio`; here are its buttons, on Gradio."""

from __future__ import annotations

import errno
import html
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sam2_keyframe.app import studio_view as view
from sam2_keyframe.app.exports import FILES
from sam2_keyframe.app.studio import MINE, MOST_OBJECTS, Models, Studio, documented
from sam2_keyframe.app.uploads import Limits, offered
from sam2_keyframe.methods import METHODS

EVERY = 0.25
"""Seconds between two pictures while tracking goes on."""

ARGUMENTS = max(len(documented(name)[1]) for name in METHODS)
"""Arguments that a method has, at most."""

TOOLS = """<div class='sk-tools' role='toolbar' aria-label='what a click or a line says'>
<button type='button' data-choose='point'>Click: object</button>
<button type='button' data-choose='not'>Click: not object</button>
<button type='button' data-choose='box'>Box</button>
<button type='button' data-choose='outline'>Outline</button>
<button type='button' data-choose='undo'>Undo</button></div>"""

LOCAL = ("127.0.0.1", "localhost", "::1")
FIRST_PORT, PORTS = 7860, 100

ASSETS = Path(__file__).parent


class People:
    """A studio for each open page.

    Args:
        make: Makes one.
        most: How many at most.
    """

    def __init__(self, make: Callable[[], Studio], most: int) -> None:
        self._make, self._most = make, most
        self._of: dict[str, Studio] = {}
        self._lock = threading.Lock()

    def studio(self, request: gr.Request) -> Studio:
        """Return the studio of the page that asks.

        Raises:
            ValueError: There are as many as this app takes.
        """
        with self._lock:
            found = self._of.get(str(request.session_hash))
            if found is None:
                if len(self._of) >= self._most:
                    raise ValueError(f"{self._most} pages are open already; close one, or try again later")
                found = self._of[str(request.session_hash)] = self._make()
            return found

    def leave(self, request: gr.Request) -> None:
        """Close the studio of a page that was left."""
        with self._lock:
            found = self._of.pop(str(request.session_hash), None)
        if found is not None:
            found.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            left, self._of = list(self._of.values()), {}
        for studio in left:
            studio.close()


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that shows what a user can mend as a message, and changes nothing then."""

    @wraps(function)
    def handler(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError, OSError, ImportError) as error:
            gr.Warning(html.escape(str(error)))
            return gr.skip()

    return handler


def build(models: Models, root: Path, limits: Limits, most: int = 8) -> tuple[gr.Blocks, People]:
    """Return the page and the studios behind it."""
    people = People(lambda: Studio(models, root, limits), most)

    with gr.Blocks(title="sam2-keyframe", analytics_enabled=False, delete_cache=(3600, 14400)) as page:
        gr.Markdown("## sam2-keyframe: see what SAM 2 remembers")
        with gr.Row():
            example = gr.Button("Load the example clip", variant="primary", size="md", scale=1, elem_id="example")
            upload = gr.UploadButton(
                "Upload a video or pictures",
                file_count="multiple", file_types=["video", "image"], size="md", scale=1, elem_id="upload",
            )  # fmt: skip
            here = [(f"or choose from {root.resolve().name}/", ""), *((each, each) for each in offered(root))]
            folder = gr.Dropdown(here, value="", show_label=False, container=False, scale=2, elem_id="folder")
        status = gr.HTML(view.progress("Load a video, a folder of pictures, or the example clip."), elem_id="status")
        with gr.Row():
            with gr.Column(scale=7, min_width=320):
                tools = gr.HTML(
                    "", html_template=f"{TOOLS}<div>${{value}}</div>", elem_id="picture",
                    js_on_load=(ASSETS / "studio.js").read_text() + "picture.start(element, trigger);"
                    "// 'point' 'box' 'outline' 'undo'",
                )  # fmt: skip
                slider = gr.Slider(0, 1, 0, step=1, label="frame", interactive=True, elem_id="frame")
            with gr.Column(scale=4, min_width=300):
                with gr.Row(equal_height=True):
                    objects = gr.Radio([1], value=1, label="object", elem_id="object", scale=3, min_width=120)
                    more = gr.Button("New object", size="sm", elem_id="more", scale=1, min_width=100)
                with gr.Row():
                    go = gr.Button("Track", variant="primary", elem_id="track", min_width=100)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=100)
                compare = gr.Checkbox(label="track SAM 2 alone beside it", value=False, elem_id="compare")
                model = gr.Dropdown(models.names, value=models.names[0], label="model", elem_id="model")
                method = gr.Dropdown(list(METHODS), value="keyframe", label="method", elem_id="method")
                about = gr.Markdown(documented("keyframe")[0], elem_id="about")
                with gr.Accordion("Choices of the method", open=False, elem_id="choices"):
                    boxes = [gr.Textbox(visible=False, elem_id=f"argument{n}") for n in range(ARGUMENTS)]
                    rest = gr.Textbox(
                        label="more choices", info="of the whole memory, name=value, one a line",
                        placeholder="fill=False", lines=1, max_lines=4, value="",
                    )  # fmt: skip
        time_line = gr.HTML("", elem_id="timeline", js_on_load=_looking("go", "bound"))
        use = gr.Button("Use the moved threshold", visible=False, size="sm", elem_id="use")
        strip = gr.HTML("", elem_id="strip", js_on_load=_looking("go"))
        moved = gr.State({})
        with gr.Accordion("Play the overlay", open=False):
            film = gr.Button("Make the video", size="sm", elem_id="film")
            video = gr.Video(label="overlay", interactive=False, elem_id="video", loop=True)
        with gr.Accordion("Take it along: export, command line, Python", open=False, elem_id="along"):
            named = [({"video": "mask video"}.get(kind, kind), kind) for kind in FILES]
            kinds = gr.CheckboxGroup(named, label="besides masks, table, recording and overlay", elem_id="kinds")
            save = gr.Button("Export", elem_id="export")
            saved = gr.DownloadButton("Download", visible=False, elem_id="download")
            command = gr.Code(label="command line (without corrections)", language="shell", interactive=False)
            python = gr.Code(label="Python (the same masks to the bit)", language="python", interactive=False)

        look: list[Any] = [tools, strip, time_line]
        choices: list[Any] = [model, method, *boxes, rest]

        def shown(studio: Studio, t: int, obj_id: int) -> tuple[str, str, str]:
            t = min(max(int(t), 0), max(studio.frames - 1, 0))
            return (
                view.picture(studio, t, obj_id),
                view.strip(studio, t, obj_id),
                view.timeline(studio, t, obj_id, studio.bounds()),
            )

        def chosen(studio: Studio, name: str, kind: str, *texts: str) -> None:
            """Hand the choices on the page to the studio."""
            *own, lines = texts
            names = list(documented(kind)[1])
            given = dict(zip(names, own, strict=False))
            for line in (lines or "").splitlines():
                if line.strip():
                    key, equals, value = line.partition("=")
                    if not equals or not key.strip().isidentifier():
                        raise ValueError(f"{line!r}: write name=value, a choice a line")
                    given[key.strip()] = value
            studio.choose(name, kind, given)

        def loaded(studio: Studio, told_of: str) -> Any:
            known = studio.objects() or [1]
            ready = (
                "Press Track; or clear it with Undo and click yourself."
                if studio.prompts
                else ("Click on an object, or draw a box or an outline around it; then press Track.")
            )
            size = "{1} x {0}".format(*studio.source.size) if studio.source else ""
            return (
                view.progress(f"{told_of}: {studio.frames} frames of {size} pixels. {ready}"),
                gr.update(maximum=max(1, studio.frames - 1), value=0),
                gr.update(choices=known, value=known[0]),
                *shown(studio, 0, known[0]),
                {}, gr.update(visible=False), None, gr.update(visible=False), "", "",
            )  # fmt: skip

        fresh: list[Any] = [status, slider, objects, *look, moved, use, video, saved, command, python]

        @told
        def load_example(request: gr.Request) -> Any:
            studio = people.studio(request)
            studio.load_example()
            return loaded(studio, "The example clip, with the outline of its object")

        @told
        def load_upload(files: Any, request: gr.Request) -> Any:
            if not files:
                return gr.skip()
            studio = people.studio(request)
            paths = [Path(str(each)) for each in (files if isinstance(files, list) else [files])]
            studio.load_upload(paths)
            return loaded(studio, studio.name)

        @told
        def load_path(text: str | None, request: gr.Request) -> Any:
            if not text:
                return gr.skip()
            studio = people.studio(request)
            studio.load(text)
            return loaded(studio, studio.name)

        @told
        def show(t: int, obj_id: int, request: gr.Request) -> Any:
            studio = people.studio(request)
            return shown(studio, t, obj_id) if studio.frames else gr.skip()

        @told
        def jump(obj_id: int, request: gr.Request, event: gr.EventData) -> Any:
            studio = people.studio(request)
            if not studio.frames:
                return gr.skip()
            t = min(max(int(event.frame), 0), studio.frames - 1)
            return (t, *shown(studio, t, obj_id))

        def say(how: Callable[[Studio, int, int, Any], Any]) -> Callable[..., Any]:
            """Return the handler of what is said of an object by clicks and lines."""

            @told
            def handler(event: gr.EventData, request: gr.Request, t: int, obj_id: int, *texts: Any) -> Any:
                studio = people.studio(request)
                chosen(studio, *texts)
                corrects = studio.corrects(int(t), int(obj_id))
                how(studio, int(t), int(obj_id), event)
                text = (
                    f"Object {obj_id} is corrected on frame {int(t)}; Track goes on from there."
                    if corrects
                    else f"Object {obj_id} has a prompt on frame {int(t)}. Add more, or press Track."
                )
                return (view.progress(text), *shown(studio, t, obj_id))

            return handler

        @told
        def describe(kind: str) -> Any:
            told_of, arguments = documented(kind)
            named = list(arguments.items())
            updates = [
                gr.update(
                    visible=True, label=named[n][0], value="", placeholder=named[n][1][0], info=named[n][1][1] or None
                )
                if n < len(named)
                else gr.update(visible=False, value="")
                for n in range(ARGUMENTS)
            ]
            return (told_of, *updates)

        def track(t: int, obj_id: int, beside: bool, request: gr.Request, *texts: Any) -> Iterator[Any]:
            nothing = (gr.skip(),) * 7
            try:
                studio = people.studio(request)
                chosen(studio, *texts)
                yield (view.progress("Getting ready ..."), *nothing[1:])
                last, where = 0.0, int(t)
                for at in studio.track(beside):
                    where = at.frame_idx
                    if time.monotonic() - last > EVERY:
                        last = time.monotonic()
                        text = f"frame {where} of {studio.frames - 1}, {at.rate:.1f} a second"
                        picture = view.picture(studio, where, obj_id)
                        yield (view.progress(text, at.done, at.total), gr.update(value=where), picture, *nothing[3:])
                whole = studio.runs[MINE].until >= studio.frames
                text = (
                    "Tracked to the end. Move the slider; click on a frame to correct it."
                    if whole
                    else f"Stopped behind frame {where}. Correct it by clicks, or press Track to go on."
                )
                yield (
                    view.progress(text),
                    gr.update(value=where),
                    *shown(studio, where, obj_id),
                    {},
                    gr.update(visible=False),
                )
            except (ValueError, TypeError, OSError, ImportError) as error:
                gr.Warning(html.escape(str(error)))
                yield (view.progress(str(error)), *nothing[1:])

        def halt(request: gr.Request) -> None:
            people.studio(request).stop()

        @told
        def bound(t: int, obj_id: int, held: dict[str, float], event: gr.EventData, request: gr.Request) -> Any:
            studio = people.studio(request)
            known = {name for _, name in studio.bounds() if name}
            if event.choice not in known:
                raise ValueError(f"there is no threshold {event.choice!r} to move")
            held = {**held, str(event.choice): float(event.value)}
            return replayed(studio, int(t), int(obj_id), held)

        def replayed(studio: Studio, t: int, obj_id: int, held: dict[str, float]) -> Any:
            start = time.perf_counter()
            result = studio.replay({name: f"{value:g}" for name, value in held.items()})
            rows = list(result.stats[obj_id].rows) if obj_id in result.stats else []
            text = (
                f"Replayed with {', '.join(f'{name}={value:g}' for name, value in held.items())} in "
                f"{time.perf_counter() - start:.1f} s, masks held fixed."
            )
            drawn = view.timeline(studio, t, obj_id, studio.bounds(), held, rows)
            label = f"Use {', '.join(f'{name}={value:g}' for name, value in held.items())} from now on"
            return view.progress(text), drawn, held, gr.update(visible=True, value=label)

        @told
        def use_moved(kind: str, held: dict[str, float], *texts: str) -> Any:
            names = list(documented(kind)[1])
            updates = [
                f"{held[names[n]]:g}" if n < len(names) and names[n] in held else text for n, text in enumerate(texts)
            ]
            told_of = view.progress("Chosen; press Track to track anew with it.")
            return (*updates, {}, gr.update(visible=False), told_of)

        @told
        def make_film(request: gr.Request) -> Any:
            return str(people.studio(request).film())

        @told
        def export(wanted: list[str], request: gr.Request) -> Any:
            studio = people.studio(request)
            path = studio.export(wanted or [])
            return (
                gr.update(visible=True, value=str(path), label=f"Download ({path.stat().st_size / 1e6:.1f} MB)"),
                view.progress("Exported; press Download."), studio.command(), studio.script(),
            )  # fmt: skip

        @told
        def again(request: gr.Request) -> Any:
            studio = people.studio(request)
            return (studio.command(), studio.script()) if studio.prompts else gr.skip()

        def add_object(request: gr.Request) -> Any:
            known = people.studio(request).objects()
            new = max(known, default=0) + 1
            if new > MOST_OBJECTS:
                gr.Warning(f"this app tracks {MOST_OBJECTS} objects at once, at most")
                return gr.skip()
            return gr.update(choices=[*known, new] if known else [1], value=new)

        quiet: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
        seen = [slider, objects]
        example.click(load_example, None, fresh, **quiet)
        upload.upload(load_upload, upload, fresh, **quiet)
        folder.input(load_path, folder, fresh, **quiet)
        slider.input(show, seen, look, trigger_mode="always_last", **quiet)
        objects.input(show, seen, look, **quiet)
        more.click(add_object, None, objects, **quiet).then(show, seen, look, **quiet)
        ways: list[tuple[Any, Callable[[Studio, int, int, Any], Any]]] = [
            (tools.point, lambda studio, t, i, e: studio.point(t, i, float(e.x), float(e.y), bool(e.positive))),
            (tools.box, lambda studio, t, i, e: studio.box(t, i, [float(each) for each in e.corners])),
            (tools.outline, lambda studio, t, i, e: studio.outline(t, i, [(float(x), float(y)) for x, y in e.points])),
            (tools.undo, lambda studio, t, i, e: studio.undo(t, i)),
        ]
        for listen, how in ways:
            said = listen(say(how), [*seen, *choices], [status, *look], **quiet)
            said.then(again, None, [command, python], **quiet)
        for event in (strip.go, time_line.go):
            event(jump, objects, [slider, *look], trigger_mode="always_last", **quiet)
        method.input(describe, method, [about, *boxes], **quiet)
        page.load(describe, method, [about, *boxes], **quiet)
        go.click(track, [*seen, compare, *choices], [status, slider, *look, moved, use], **quiet).then(
            again, None, [command, python], **quiet
        )
        stop.click(halt, None, None, queue=False, **quiet)
        time_line.bound(bound, [*seen, moved], [status, time_line, moved, use], **quiet)
        use.click(use_moved, [method, moved, *boxes], [*boxes, moved, use, status], **quiet)
        film.click(make_film, None, video, **{**quiet, "show_progress": "full"})
        save.click(export, kinds, [saved, status, command, python], **{**quiet, "show_progress": "full"})
        page.unload(people.leave)
    return page, people


def _looking(*events: str) -> str:
    """Return the script of the strip and the timeline, with the events that Gradio looks for in it."""
    return (
        (ASSETS / "studio.js").read_text()
        + "look.start(element, trigger);// "
        + " ".join(f"'{name}'" for name in events)
    )


def theme() -> gr.Theme:
    """Return the look: system fonts, since nothing is fetched from elsewhere."""
    return gr.themes.Default(
        primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="md"
    )


def application(page: gr.Blocks, limits: Limits, host: str) -> Any:
    """Return the page as a web application that answers to no name but its own, so that no other site reaches it."""
    outer = FastAPI()
    if host in LOCAL:
        outer.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"])
    return gr.mount_gradio_app(
        outer, page, path="/", server_name=host, ssr_mode=False, max_file_size=limits.megabytes * 10**6,
        footer_links=[], theme=theme(), css=(ASSETS / "studio.css").read_text(), show_error=False,
    )  # fmt: skip


def serve(
    models: Sequence[str],
    device: str,
    root: Path,
    limits: Limits,
    host: str,
    port: int | None,
    say: Callable[[str], None],
) -> None:
    """Serve the app until Ctrl-C.

    Args:
        models: Names of the models that can be chosen, as `load_model` takes them.
        device: Where they run.
        root: The only folder from which videos are loaded by name.
        limits: What is refused.
        host: Address to listen on; 127.0.0.1 is this machine alone.
        port: Port; None takes the first free one from 7860 on.
        say: Prints a line.

    Raises:
        OSError: The port is taken.
    """
    with _listening(host, port) as listener:
        page, people = build(Models(models, device), root, limits)
        server = uvicorn.Server(uvicorn.Config(application(page, limits, host), log_level="error"))
        name = f"[{host}]" if ":" in host else host
        say(f"open http://{name}:{listener.getsockname()[1]} in a browser; Ctrl-C ends it")
        try:
            server.run(sockets=[listener])
        finally:
            people.close()


def _listening(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens on a port, or on the first free one from 7860 on.

    Raises:
        OSError: There is none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for tried in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, tried))
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise OSError(f"--host {host}: cannot be listened on ({error.strerror}); choose 127.0.0.1") from None
            continue
        return listener
    told = f"port {port} is" if port is not None else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
    raise OSError(f"{told} taken; give another one with --port")
