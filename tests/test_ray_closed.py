"""The Ray of a run answers nobody else: not without its token, and on no interface but loopback."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SPEAK = "import sys; from ray._raylet import GcsClient; print(GcsClient(address=sys.argv[1]).cluster_id.hex())"


def speak(address: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Speak to Ray from a process that inherits nothing of it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", SPEAK, address], env={**clean, **settings}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_only_who_has_the_token_is_answered_and_only_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from experiments.runtime.cluster import local_ray

    # the user's own token, of a cluster elsewhere, is neither used nor lost
    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    tokens = []
    for _ in range(2):
        with local_ray(cpus=1, gpus=0, workdir=tmp_path):
            address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
            tokens.append(token)
            remote = ray.remote(lambda: os.getpid())
            assert ray.get(remote.remote()) != os.getpid()
            if len(tokens) > 1:
                break
            for settings in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}):
                refused = speak(address, **settings)
                assert refused.returncode and "InvalidAuthToken" in refused.stderr, refused
            answered = speak(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
            assert answered.returncode == 0, answered.stderr
            family = [psutil.Process(), *psutil.Process().children(recursive=True)]
            # a token in a command line is everybody's
            assert not any(token in word for one in family for word in one.cmdline())
            places = {
                place.laddr.ip.removeprefix("::ffff:")
                for one in family
                for place in one.net_connections(kind="inet")
                if place.status == psutil.CONN_LISTEN
            }
            assert places == {"127.0.0.1"}
    assert tokens[0] != tokens[1] and os.environ["RAY_AUTH_TOKEN"] == "e" * 64
    assert "RAY_AUTH_MODE" not in os.environ
