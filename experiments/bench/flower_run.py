"""One run of a Flower contestant in its own process: ``python -m experiments.bench.flower_run``.

It runs Flower's unmodified simulation on its own Ray. The job is JSON in the environment, since ``run_simulation``
takes no run config; Ray's workers inherit it.
"""

import importlib

from flwr.simulation import run_simulation

from experiments.bench import contest, flower_server
from experiments.resources import even_share


def main() -> None:
    """Run the simulation that the environment describes; times are written to ``output.dir``."""
    job = contest.read_job()
    run_simulation(
        flower_server.app,
        importlib.import_module(job.client).app,
        num_supernodes=job.nodes,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": even_share(job.actors, job.gpus)},
            "init_args": {
                "num_cpus": job.actors,
                "num_gpus": job.gpus,
                "include_dashboard": False,
                "_temp_dir": job.scratch,
            },
        },
    )


if __name__ == "__main__":
    main()
