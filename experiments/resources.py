"""The number of SuperNodes and Ray actors of a run, and what each actor may use of the machines.

SuperNodes carry cohorts of clients; actors do the work, each one process for the duration of the run. An actor sees the
GPU that Ray gives it a share of, so the share is always explicit. An actor is on one machine, and its share on one GPU.
The caller determines which machines there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedpfn.devices import GPU_SHARE, VISIBLE, gpu_share

# Ray counts GPUs in ten-thousandths
_UNITS = 10_000


@dataclass(frozen=True)
class Machine:
    """What a machine offers, this one or one of a cluster."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Resources:
    """What a run is given: ``gpus_per_actor`` is a share of at most 1 (0.25: four actors per GPU)."""

    supernodes: int
    actors: int
    cpus_per_actor: int
    gpus: int
    gpus_per_actor: float


def plan_resources(
    *,
    device: Literal["cpu", "cuda"],
    clients_per_round: int,
    supernodes: int | None,
    actors: int | None,
    gpus_per_actor: float | None,
    machines: Sequence[Machine],
) -> Resources:
    """Fill in what was left open (None) and refuse what the machines cannot provide.

    On ``cpu``: one actor per core. On ``cuda``: one actor per GPU, or as many as shares of ``gpus_per_actor`` fit; the
    cores are divided among them. By default there are no more actors than clients in a round, and one SuperNode per
    actor. Since Ray fills one GPU before it uses the next, a share is enlarged so that actors are spread evenly over
    the GPUs. An actor computes on one GPU, so more than one per actor is refused.

    Raises ``ValueError``, one line, for an impossible request.

    >>> plan_resources(device="cpu", clients_per_round=10, supernodes=None, actors=None, gpus_per_actor=None,
    ...                machines=[Machine(cpus=4)])
    Resources(supernodes=4, actors=4, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0)
    """
    cpus, gpus = sum(machine.cpus for machine in machines), sum(machine.gpus for machine in machines)
    requested = {"clients per round": clients_per_round, "CPUs": cpus, "SuperNodes": supernodes, "actors": actors}
    for name, count in requested.items():
        if count is not None and count < 1:
            raise ValueError(f"the number of {name} must be at least 1, not {count}")
    if actors is not None and actors > cpus:
        raise ValueError(f"{actors} actors were requested, but there are {cpus} CPUs and each actor needs its own")

    if device == "cpu":
        if gpus_per_actor:
            raise ValueError(f"{gpus_per_actor:g} GPUs per actor make no sense on device cpu; set device to cuda")
        share, rooms = 0.0, [machine.cpus for machine in machines]
    else:
        share = 1.0 if gpus_per_actor is None else float(gpus_per_actor)
        rooms = _gpu_rooms(share, actors=actors, machines=machines)
    chosen = actors if actors is not None else min(sum(rooms), clients_per_round)
    per_machine = [(machine.cpus, min(room, chosen)) for machine, room in zip(machines, rooms, strict=True) if room]
    if 0 < share < 1:
        share = max(share, 1 / -(-chosen // gpus))
    return Resources(
        supernodes=supernodes if supernodes is not None else min(chosen, clients_per_round),
        actors=chosen,
        # Ray gives an actor as many threads as CPUs. On a CPU always one: more threads sum in another order, and a run
        # must not depend on the number of cores. On a GPU, the threads only feed it.
        cpus_per_actor=1 if device == "cpu" else min(cpus // room for cpus, room in per_machine),
        gpus=0 if device == "cpu" else gpus,
        gpus_per_actor=share,
    )


def _gpu_rooms(share: float, *, actors: int | None, machines: Sequence[Machine]) -> list[int]:
    """Return the number of actors with a share of a GPU that each machine holds."""
    gpus = sum(machine.gpus for machine in machines)
    if gpus < 1:
        raise ValueError("device cuda was requested, but no GPU is visible; set device to cpu, or check nvidia-smi")
    if share <= 0:
        raise ValueError(f"an actor on device cuda needs a share of a GPU above 0, not {share:g}: Ray hides CUDA at 0")
    if share > 1:
        raise ValueError(f"{share:g} GPUs per actor make no sense: an actor computes on one GPU; give it 1 or a share")
    # Shares do not span GPUs: 0.4 fits twice into each. The factor corrects rounding such as 1/3 * 3 < 1, also in
    # float32, and is smaller than the ten-thousandths in which Ray counts.
    rooms = [int(1 / share * (1 + 1e-6)) * one.gpus for one in machines]
    if actors is not None and actors > sum(rooms):
        raise ValueError(f"{actors} actors of {share:g} GPUs each do not fit on {gpus} GPUs, which hold {sum(rooms)}")
    return [min(room, machine.cpus) for room, machine in zip(rooms, machines, strict=True)]


def place_of(number: int, count: int, *, cards: Sequence[str], share: float = 1.0) -> dict[str, str]:
    """Return the environment variables that give process ``number`` of ``count`` its GPU, and its share of it.

    ``cards`` are the names of GPUs as CUDA spells them, given out in turn. Without any, GPUs are assigned elsewhere,
    and ``share`` is what each process has of one.

    >>> place_of(4, 6, cards=["0", "3"])
    {'CUDA_VISIBLE_DEVICES': '0', 'FEDPFN_GPU_SHARE': '0.333333'}
    """
    if not cards:
        return {GPU_SHARE: f"{share:.6g}"} if 0 < share < 1 else {}
    card = number % len(cards)
    others = len(range(card, count, len(cards)))
    # all these processes together may already share their GPUs with others
    return {VISIBLE: cards[card], GPU_SHARE: f"{gpu_share() / others:.6g}"}


def even_share(actors: int, gpus: int) -> float:
    """Return the share of a GPU with which ``actors`` fit on ``gpus``, none of them on two GPUs.

    Rounded down to the units in which Ray counts, so that dividing by it does not lose an actor.

    >>> even_share(3, 1), even_share(6, 4), even_share(2, 4), even_share(2, 0)
    (0.3333, 0.5, 1.0, 0.0)
    """
    return int(_UNITS / -(-actors // gpus)) / _UNITS if gpus else 0.0
