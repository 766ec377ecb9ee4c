"""`ezm ui`: MLflow's web UI on this machine only."""

from __future__ import annotations

import os
import socket
import sys

from ezm_pl.spec import SpecError
from ezm_pl.tracking.runs.run_lookup import last_recorded_uri
from ezm_pl.tracking.store import (
    QUIET,
    artifacts_folder,
    open_store,
    shown,
    sqlite_file,
    sqlite_url,
    tracking_uri,
)  # fmt: skip

HOST = "127.0.0.1"


def serve_ui(port: int) -> None:
    """Becomes MLflow's server on 127.0.0.1 (this process does not return); Ctrl-C stops it.

    Raises:
        SpecError: the port is in use, there is no database yet, or the store is a server already.
    """
    uri = tracking_uri(recorded=last_recorded_uri())
    if uri.startswith(("http://", "https://")):
        raise SpecError(f"the tracking store is a server with its own UI: open {shown(uri)}")
    if not _is_free(port):
        near = next((p for p in range(port + 1, min(port + 100, 65536)) if _is_free(p)), None)
        hint = f"; {near} is free: ezm ui --port {near}" if near else ""
        raise SpecError(f"port {port} is already in use on {HOST}{hint}")
    open_store(uri, create=False)
    file, artifacts = sqlite_file(uri), artifacts_folder(uri)
    uri = sqlite_url(file) if file else uri
    page = f"http://{HOST}:{port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow UI of {file or shown(uri)}: {page} (Ctrl-C stops it)", flush=True)
    options = {
        "backend-store-uri": uri,
        "registry-store-uri": uri,
        "host": HOST,
        "port": str(port),
        "workers": "1",
        "uvicorn-opts": "--log-level warning",
        **({"default-artifact-root": artifacts.as_uri()} if artifacts else {}),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    quiet = {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    os.execve(sys.executable, command, {**os.environ, **quiet})


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
