"""One run's life: from a run config that was checked to the end of its simulation, whatever that end is.

A run goes through Flower's own command line (``flwr run``, ``flwr list``) and its simulation runtime, on a SuperLink
that is started for it and ends with it; nothing of a run outlives ``launch``, and runs side by side share nothing.
The simulation is ``simulation``'s, what it may use of the machine ``resources``'. The caller shows things to the user;
this module is silent.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.interruption import interruptible
from experiments.resources import Resources
from experiments.simulation import simulation

SERVER_APP = "strategies.server_app:app"
CLIENT_APP = "clients.client_app:app"


def launch(
    run_config: Mapping[str, bool | int | float | str],
    resources: Resources,
    *,
    workdir: Path,
    log_file: Path,
    watch: Callable[[], None] = lambda: None,
    poll_seconds: float = 0.2,
    server_app: str = SERVER_APP,
    client_app: str = CLIENT_APP,
    prompt: bool = True,
) -> None:
    """Run the simulation and return when it completed; its log goes to ``log_file`` as it comes.

    ``run_config`` is flat, with dotted keys. ``workdir`` holds the user's own modules and comes last on the import
    path; the processes do not start in it, so relative paths in the config or in users' code do not lead there.
    ``watch`` is called every ``poll_seconds`` of the run, in this thread; what it raises ends the run and is passed on.
    ``prompt`` spares each round a wait inside Flower (``prompt_simulation``).

    Raises ``RunFailed`` with the most telling reason there is. Ctrl-C and SIGTERM raise ``KeyboardInterrupt``. In every
    case all processes of the run have gone when this returns.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log_file.write_bytes(b"")
    with (
        interruptible(),
        simulation(
            run_config,
            resources,
            workdir=workdir,
            log_file=log_file,
            server_app=server_app,
            client_app=client_app,
            prompt=prompt,
        ) as running,
    ):
        while not running.ended():
            watch()
            time.sleep(poll_seconds)
        watch()
        running.judge()
