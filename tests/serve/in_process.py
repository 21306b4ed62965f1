"""The application on a port of this process, with models that are loaded already."""

import contextlib
import threading
import time
from pathlib import Path

import bentoml
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from support import free_port

from mlops_nb.serve.app import App
from mlops_nb.serve.slots import Slots, only


def static_files():
    """What BentoML answers behind the application: its files of Swagger UI."""
    folder = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"
    return Starlette(routes=[Mount("/static_content", StaticFiles(directory=folder))])


@contextlib.contextmanager
def running(*models, around=lambda app: app, slots=None, **options):
    """The application on a port; its address."""
    app = around(App(static_files(), slots or Slots(*map(only, models)), **options))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)
