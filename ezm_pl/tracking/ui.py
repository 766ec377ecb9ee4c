"""`ezm ui`: MLflow's web UI on this machine only."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from ezm_pl.spec import SpecError
from ezm_pl.tracking.store import ARTIFACTS, QUIET, SQLITE, shown, tracking_uri

HOST = "127.0.0.1"


def serve_ui(port: int) -> None:
    """Becomes MLflow's server on 127.0.0.1 (this process does not return); Ctrl-C stops it.

    Raises:
        SpecError: the port is in use, there is no database yet, or the store is a server already.
    """
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        raise SpecError(f"MLFLOW_TRACKING_URI is a server with its own UI: open {shown(uri)}")
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise SpecError(f"no runs yet: {uri.removeprefix(SQLITE)} does not exist; `make train` makes it")
    if not _is_free(port):
        near = next((p for p in range(port + 1, min(port + 100, 65536)) if _is_free(p)), None)
        hint = f"; {near} is free: make ui PORT={near}" if near else ""
        raise SpecError(f"port {port} is already in use on {HOST}{hint}")
    print(
        f"MLflow UI: http://{HOST}:{port}/#/experiments?workflowType=machine_learning (Ctrl-C stops it)",
        flush=True,
    )
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--registry-store-uri",
        uri,
    ]
    command += [
        "--host",
        HOST,
        "--port",
        str(port),
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level warning",
    ]
    command += ["--no-serve-artifacts", "--default-artifact-root", str(ARTIFACTS)]
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
