"""Label histograms, total variation and the manifest, by hand-made numbers."""

import json

import numpy as np
import pytest

from partitions.statistics import histograms, manifest, mean_total_variation, total_variation

LABELS = np.array([0, 0, 1, 1, 2])
PARTS = [np.array([0, 2]), np.array([1, 3, 4]), np.array([], dtype=np.int64)]


def test_histograms_count_each_class_of_each_client_and_keep_classes_that_do_not_occur():
    assert histograms(LABELS, PARTS, 4).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_total_variation_of_two_one_class_clients_is_one_half():
    assert total_variation(np.array([[5, 0], [0, 5]])).tolist() == [0.5, 0.5]


def test_total_variation_weighs_the_global_distribution_by_examples_not_by_clients():
    # Global (3/4, 1/4): client 0 is off by 1/4, client 1 by 3/4.
    assert total_variation(np.array([[9, 0], [0, 3]])).tolist() == [0.25, 0.75]
    assert mean_total_variation(np.array([[9, 0], [0, 3]])) == 0.5


def test_total_variation_is_zero_where_every_client_is_like_the_whole():
    assert total_variation(np.array([[2, 4], [1, 2]])) == pytest.approx([0, 0], abs=1e-15)


def test_a_client_without_examples_has_no_distance_and_does_not_count_in_the_mean():
    counts = np.array([[9, 0], [0, 3], [0, 0]])
    assert np.isnan(total_variation(counts)).tolist() == [False, False, True]
    assert mean_total_variation(counts) == 0.5
    assert mean_total_variation(np.zeros((2, 3), dtype=np.int64)) == 0.0


def test_the_manifest_says_what_was_asked_for_and_what_came_and_survives_json():
    summary = manifest(LABELS, PARTS[:1], 3, scheme="dirichlet", alpha=0.5)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["scheme"] == "dirichlet" and summary["alpha"] == 0.5
    assert (summary["clients"], summary["examples"], summary["unused"]) == (1, 2, 3)
    assert summary["sizes"] == [2] and summary["class_counts"] == [[1, 1, 0]]
    assert summary["mean_total_variation"] == 0.0


def test_the_digest_tells_assignments_apart_but_not_the_order_within_a_client():
    def digest(*parts: list[int]) -> str:
        return manifest(LABELS, [np.array(part, dtype=np.int64) for part in parts], 3)["digest"]

    assert digest([0, 2], [1]) == digest([2, 0], [1])
    others = [digest([1], [0, 2]), digest([0], [2, 1]), digest([0, 2, 1]), digest([0, 2, 1], []), digest([0, 2], [3])]
    assert len({digest([0, 2], [1]), *others}) == 6
