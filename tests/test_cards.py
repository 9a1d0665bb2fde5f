"""Who computes on which card, and how much of it: with cards that are only declared, since nobody has to compute."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pretend_cuda import pretend_cuda, why_not

from experiments.resources import Machine, Resources, even_share, place_of, plan_resources
from experiments.runtime.cluster import local_ray
from experiments.runtime.workers import Workers
from fedpfn.devices import GPU_SHARE, VISIBLE, resolve_device

SHARES = (1.0, 1 / 2, 1 / 3, 0.2, 0.1)
CARDS = (1, 2, 4)


def planned(share: float, cards: int, *, clients: int = 100, actors: int | None = None) -> Resources:
    return plan_resources(
        device="cuda", clients_per_round=clients, supernodes=None, actors=actors, gpus_per_actor=share,
        machines=[Machine(64, cards)],
    )  # fmt: skip


def places(resources: Resources, cards: int) -> list[dict[str, str]]:
    names = [str(card) for card in range(cards)]
    return [place_of(number, resources.actors, cards=names) for number in range(resources.actors)]


@pytest.mark.parametrize("cards", CARDS)
@pytest.mark.parametrize(("share", "per_card"), list(zip(SHARES, (1, 2, 3, 5, 10), strict=True)))
def test_every_card_is_filled_and_none_twice(share: float, per_card: int, cards: int) -> None:
    resources = planned(share, cards)
    assert resources.actors == per_card * cards
    assert Counter(place[VISIBLE] for place in places(resources, cards)) == {str(n): per_card for n in range(cards)}


@pytest.mark.parametrize("cards", CARDS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("clients", range(1, 13))
def test_workers_spread_evenly_and_share_no_more_than_a_card(share: float, cards: int, clients: int) -> None:
    resources = planned(share, cards, clients=clients)
    found = places(resources, cards)
    on_card = Counter(place[VISIBLE] for place in found)
    assert len(on_card) == min(cards, resources.actors)
    assert max(on_card.values()) - min(on_card.values()) <= 1
    for card in on_card:
        of_it = sum(float(place[GPU_SHARE]) for place in found if place[VISIBLE] == card)
        assert of_it == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("gpus", CARDS)
@pytest.mark.parametrize("actors", range(1, 41))
def test_shares_that_ray_and_flower_are_asked_for_have_room(actors: int, gpus: int) -> None:
    share = even_share(actors, gpus)
    # Ray counts in ten-thousandths, on each card by itself; Flower divides
    assert share <= 1 and 10_000 // round(share * 10_000) * gpus >= actors
    assert int(gpus / share) >= actors


def test_the_server_takes_the_card_with_the_fewest_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not():
        pytest.skip(reason)
    taken: list[Any] = []
    # what is patched inside goes first: after the block it would bring the pretended functions back
    with pretend_cuda(), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        patch.setattr(torch.cuda, "set_device", taken.append)
        assert resolve_device("cuda", who="a worker") == torch.device("cuda", 0)
        assert resolve_device("cuda", who="the server", last=True) == torch.device("cuda", 3)
    assert taken == [torch.device("cuda", 0), torch.device("cuda", 3)]
    resources = planned(1 / 2, 4, actors=6)
    on_card = Counter(place[VISIBLE] for place in places(resources, 4))
    assert on_card["3"] == min(on_card.values())


def test_who_shares_a_card_takes_no_more_than_its_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not():
        pytest.skip(reason)
    limits: list[float] = []
    with pretend_cuda(), monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: limits.append(part))
        resolve_device("cuda", who="the only one")
        patch.setenv(GPU_SHARE, "0.25")
        resolve_device("cuda", who="one of four")
    assert limits == [pytest.approx(0.225)]


def test_a_job_passes_its_part_of_a_card_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPU_SHARE, "0.5")
    assert place_of(1, 2, cards=["3"]) == {VISIBLE: "3", GPU_SHARE: "0.25"}


@pytest.mark.slow
def test_as_many_processes_as_planned_use_all_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has nothing but the number: no driver is asked.

    Processes take time to start: clients and shares are few, those on one card do not add up to one as floats do.
    """

    # here, so that Ray sends the class and does not import this module with all of PyTorch
    class Placed:
        def __init__(self, client_app: str, surroundings: dict[str, str]) -> None:
            os.environ.update(surroundings)

        def card(self) -> str:
            # later, since Ray sets it for whom it gives a card
            return os.environ["CUDA_VISIBLE_DEVICES"]

    monkeypatch.setattr("experiments.runtime.workers.Worker", Placed)
    for cards, shares in ((1, (1 / 3, 0.2)), (2, (1.0, 1 / 2))):
        names = [f"GPU-{number}" for number in range(cards)]
        with local_ray(cpus=8, gpus=cards, workdir=Path(__file__).parent):
            for share in shares:
                resources = planned(share, cards, clients=5)
                workers = Workers("", resources.actors, gpus=resources.gpus_per_actor, cards=names)
                answers = [actor.card.remote() for actor in workers.actors]
                done, missing = ray.wait(answers, num_returns=len(answers), timeout=60)
                assert not missing, f"{len(done)} of {resources.actors} processes started: share {share}, {cards} cards"
                assert set(ray.get(done)) == set(names[: resources.actors]), (share, cards)
                workers.close()
    with pytest.raises(ValueError, match="an actor computes on one GPU"):
        planned(2, 4)
