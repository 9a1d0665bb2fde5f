"""Tasks beyond images: polynomials to regress, reviews as tokens, and the LSTM that reads them."""

import math
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc.polynomials import POLYNOMIALS, polynomial_examples
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.models import build, find_faults, inspect_model
from fedpfn.models.lstm import VOCABULARY, lstm
from fedpfn.parallel import ModelPool
from fedpfn.params import read_state, trainable, write_state
from fedpfn.seeding import numpy_generator
from fedpfn.training import batch_order, make_optimizer, train
from partitions import imdb
from partitions.datasets import DataError, load
from partitions.datasets import find_faults as data_faults

# Polynomials


@pytest.mark.parametrize(
    ("name", "formula"), [("quadratic", lambda x: 2 * x * x - 1), ("cubic", lambda x: (x - 3) ** 3)]
)
def test_labels_are_the_formula_over_its_domain(name, formula):
    low, high = {"quadratic": (-1, 1), "cubic": (2, 4)}[name]
    for examples, count in zip(polynomial_examples(name, seed=0, train=500, test=300), (500, 300), strict=True):
        assert examples.inputs.shape == (count, 1) and examples.labels.shape == (count,)
        assert examples.inputs.dtype == examples.labels.dtype == torch.float32
        x = examples.inputs[:, 0].double().numpy()
        assert np.array_equal(examples.labels.numpy(), formula(x).astype(np.float32))
        assert low <= x.min() < low + 0.05 and high - 0.05 < x.max() <= high
        assert x.mean() == pytest.approx((low + high) / 2, abs=0.15)


def test_labels_run_over_the_same_range_in_both_tasks():
    assert [float(POLYNOMIALS["quadratic"].value(torch.tensor(x))) for x in (-1.0, 0.0, 1.0)] == [1, -1, 1]
    assert [float(POLYNOMIALS["cubic"].value(torch.tensor(x))) for x in (2.0, 3.0, 4.0)] == [-1, 0, 1]


def test_examples_are_a_function_of_the_seed_and_splits_stay_apart():
    train_a, test_a = polynomial_examples("cubic", seed=1, train=50, test=50)
    train_b, test_b = polynomial_examples("cubic", seed=1, train=50, test=20)
    assert torch.equal(train_a.inputs, train_b.inputs) and torch.equal(test_a.inputs[:20], test_b.inputs)
    assert not set(train_a.inputs[:, 0].tolist()) & set(test_a.inputs[:, 0].tolist())
    assert not torch.equal(polynomial_examples("cubic", seed=2, train=50)[0].inputs, train_a.inputs)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_a_small_mlp_learns_a_polynomial(name):
    examples, test = polynomial_examples(name, seed=0, train=500, test=200)
    model = build("mlp", (1,), 1, seed=0, hidden=1, width=64)
    batches = batch_order(len(examples), 32, numpy_generator(0, "batches"))
    train(model, examples, batches, [(None, 400)], optimizer=make_optimizer("adam", lr=0.03))
    found = evaluate(model, test)
    assert found.loss < 0.2 * float(test.labels.var()) and math.isnan(found.accuracy)


def test_an_unknown_polynomial_and_an_empty_split_are_refused():
    with pytest.raises(ValueError, match="unknown polynomial 'sine'; expected one of quadratic, cubic"):
        polynomial_examples("sine", seed=0)
    for sizes in ({"train": 0}, {"test": 0}):
        with pytest.raises(ValueError, match="train and test"):
            polynomial_examples("cubic", seed=0, **sizes)


# Words and tokens


def test_words_are_told_from_what_surrounds_them():
    text = "It's <br/>SO  good—'really', isn't it?<br /><br />10/10 Amélie!"
    assert imdb.split_words(text) == ["it's", "so", "good", "really", "isn't", "it", "10", "10", "amélie"]
    assert imdb.split_words("... <br />") == []


def test_a_vocabulary_goes_by_count_and_then_by_the_alphabet():
    reviews = [["b", "b", "a", "d"], ["c", "b", "a"]]
    assert imdb.build_vocabulary(reviews, size=5) == {"b": 2, "a": 3, "c": 4}
    assert list(imdb.build_vocabulary(reviews)) == ["b", "a", "c", "d"]


def test_a_row_keeps_the_last_words_and_is_padded_in_front():
    vocabulary = {"a": 2, "b": 3}
    assert imdb.encode(["a", "x", "b"], vocabulary, length=5).tolist() == [0, 0, 2, 1, 3]
    assert imdb.encode(["b", "a", "x", "b"], vocabulary, length=3).tolist() == [2, 1, 3]
    assert imdb.encode([], vocabulary, length=2).tolist() == [0, 0]


@given(st.lists(st.text("abc ", max_size=12), min_size=1, max_size=6), st.integers(1, 6), st.integers(2, 6))
def test_tokens_lie_within_the_vocabulary_and_padding_only_in_front(texts, length, size):
    reviews = [imdb.split_words(text) for text in texts]
    vocabulary = imdb.build_vocabulary(reviews, size=size)
    assert sorted(vocabulary.values()) == list(range(2, 2 + len(vocabulary))) and len(vocabulary) <= size - 2
    for words in reviews:
        row = imdb.encode(words, vocabulary, length=length)
        count = min(len(words), length)
        assert row.dtype == np.int64 and row.shape == (length,) and row.max() < size
        assert not row[: length - count].any() and row[length - count :].all()


def test_the_lstm_knows_as_many_tokens_as_the_reviews_have():
    assert VOCABULARY == imdb.VOCABULARY


# The folder of reviews


def write_reviews(root: Path, *, count: int = 3, words: int = 4) -> Path:
    """Write reviews in the layout of aclImdb: filler, with "splendid" or "dreadful" somewhere."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, verdict in (("neg", "dreadful"), ("pos", "splendid")):
            folder = root / "aclImdb" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                text = [f"filler{k}" for k in rng.integers(20, size=words)]
                text.insert(int(rng.integers(words + 1)), verdict)
                (folder / f"{number}_1.txt").write_text(" ".join(text), encoding="utf-8")
    return root


@pytest.fixture
def reviews(tmp_path) -> Path:
    return write_reviews(tmp_path / "data")


def load_reviews(root: Path, tmp_path: Path):
    return load("imdb", str(root), cache_dir=tmp_path / "cache")


def test_reviews_become_rows_of_tokens_with_their_labels(reviews, tmp_path):
    train_folder = reviews / "aclImdb" / "train"
    for folder in (train_folder / "pos", train_folder / "neg"):
        for path in folder.iterdir():
            path.write_text("plain plain words")
    (train_folder / "pos" / "0_1.txt").write_text("Splendid!<br />words")
    (reviews / "aclImdb" / "test" / "neg" / "1_1.txt").write_text("new words")
    (reviews / "aclImdb" / "train" / "unsup").mkdir()
    (train_folder / "pos" / "notes").write_text("no review")
    data = load_reviews(reviews, tmp_path)
    assert (data.name, data.kind, data.input_shape, data.num_classes) == ("imdb", "tokens", (200,), 2)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.labels.dtype == np.int64
    # plain 10 times, words 6 times, splendid once
    assert data.train.inputs[0, -4:].tolist() == [0, 2, 2, 3]
    assert data.train.inputs[3, -4:].tolist() == [0, 0, 4, 3]
    assert data.test.inputs[1, -3:].tolist() == [0, 1, 3], "words of the test split alone are unknown"


def test_reviews_come_in_the_order_of_their_names(reviews, tmp_path):
    folder = reviews / "aclImdb" / "test" / "pos"
    for path in folder.iterdir():
        path.unlink()
    for name in ("10_9", "9_9", "1_9"):
        (folder / f"{name}.txt").write_text("splendid " * int(name.partition("_")[0]))
    known = (load_reviews(reviews, tmp_path).test.inputs[3:] != imdb.PADDING).sum(axis=1)
    assert known.tolist() == [10, 1, 9], "10_9.txt, 1_9.txt, 9_9.txt"


def test_a_second_load_reads_no_review_and_a_changed_one_is_seen(reviews, tmp_path, monkeypatch):
    first = load_reviews(reviews, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(imdb, "_read_words", lambda path: pytest.fail(f"{path} was read again"))
        second = load_reviews(reviews, tmp_path)
    assert np.array_equal(first.train.inputs, second.train.inputs)
    assert isinstance(second.test.inputs, np.memmap) and not second.test.inputs.flags.writeable
    (reviews / "aclImdb" / "test" / "pos" / "0_1.txt").write_text("dreadful dreadful dreadful dreadful dreadful")
    third = load_reviews(reviews, tmp_path)
    assert len(set(third.test.inputs[3, -5:].tolist())) == 1
    assert not list((tmp_path / "cache").rglob("*.part*"))


def test_tokens_cut_short_on_disk_are_made_anew(reviews, tmp_path):
    whole = np.array(load_reviews(reviews, tmp_path).test.inputs)
    for size in (100, 0):
        for path in (tmp_path / "cache").rglob("*.npy"):
            path.write_bytes(path.read_bytes()[:size])
        assert np.array_equal(load_reviews(reviews, tmp_path).test.inputs, whole)


def test_absent_reviews_are_told_with_the_place_and_the_remedy(reviews, tmp_path):
    for root in ("", str(tmp_path)):
        (fault,) = data_faults("imdb", root, download=True)
        assert "aclImdb" in fault and "aclImdb_v1.tar.gz" in fault and "\n" not in fault
    assert data_faults("imdb", str(reviews), download=False) == []
    (reviews / "aclImdb" / "test" / "neg").rename(reviews / "aclImdb" / "test" / "other")
    (fault,) = data_faults("imdb", str(reviews), download=False)
    assert f"not in {reviews}/aclImdb (it exists, but lacks test/neg)" in fault


def test_a_folder_without_reviews_and_a_review_that_is_no_text_are_named(reviews, tmp_path):
    broken = reviews / "aclImdb" / "train" / "pos" / "1_1.txt"
    broken.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"pos/1_1\.txt is not UTF-8 text"):
        load_reviews(reviews, tmp_path)
    for path in broken.parent.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/pos holds no review"):
        load_reviews(reviews, tmp_path)


def test_a_cache_that_cannot_be_written_says_how_to_move_it(reviews, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot be cached in .*FEDPFN_CACHE"):
        load_reviews(reviews, tmp_path)


# The LSTM


def small(seed: int = 0) -> torch.nn.Module:
    return build("lstm", (6,), 2, seed=seed, width_multiplier=1 / 32)


def some_tokens(count: int = 12, length: int = 6) -> Examples:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (count, length), generator=generator)
    return Examples(tokens, torch.randint(0, 2, (count,), generator=generator))


def test_the_lstm_has_the_layers_of_the_paper():
    shapes = {name: tuple(tensor.shape) for name, tensor in lstm((200,), 2).named_parameters()}
    assert shapes["embedding.weight"] == (1000, 64) and shapes["head.weight"] == (2, 256)
    assert shapes["lstm1.weight_ih_l0"] == (4 * 256, 64) and shapes["lstm2.weight_ih_l0"] == (4 * 256, 256)
    assert len(shapes) == 1 + 4 + 4 + 2
    assert lstm((5,), 2, width_multiplier=0.5).head.in_features == 128


def test_the_lstm_computes_the_cell_equations():
    model = small()
    weights, tokens = trainable(model), some_tokens(3, 4).inputs
    sequence = list(weights["embedding.weight"][tokens].unbind(1))
    for layer in ("lstm1", "lstm2"):
        inside, hidden = weights[f"{layer}.weight_ih_l0"], weights[f"{layer}.weight_hh_l0"]
        bias = weights[f"{layer}.bias_ih_l0"] + weights[f"{layer}.bias_hh_l0"]
        h = c = torch.zeros(3, hidden.shape[1])
        for step, x in enumerate(sequence):
            i, f, g, o = (x @ inside.T + h @ hidden.T + bias).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            sequence[step] = h
    expected = sequence[-1] @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(tokens), expected)


def test_initial_weights_are_a_function_of_the_seed():
    one, same, other = read_state(small(3)), read_state(small(3)), read_state(small(4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_evaluating_a_state_is_evaluating_a_model_that_holds_it():
    model, examples = small(), some_tokens()
    own = evaluate(model, examples)
    for seed in (1, 2, 1):
        state = read_state(small(seed))
        holder = small(5)
        write_state(holder, state)
        assert evaluate(model, examples, state=state) == evaluate(holder, examples) != own
    assert evaluate(model, examples) == own == evaluate(deepcopy(model), examples)


def test_every_weight_of_a_state_reaches_the_kernel():
    model, examples = small(), some_tokens()
    state = read_state(model)
    for name in state:
        changed = state | {name: state[name] + 0.5 * torch.linspace(-1, 1, state[name].numel()).view_as(state[name])}
        assert evaluate(model, examples, state=changed).loss != evaluate(model, examples, state=state).loss, name


def test_workers_with_copies_of_the_lstm_agree_with_one():
    examples, states = some_tokens(), [read_state(small(seed)) for seed in range(6)]
    pool = ModelPool(small(9), workers=2)
    found = pool.map(lambda state: evaluate(pool.model, examples, state=state), states)
    pool.close()
    assert found == [evaluate(small(9), examples, state=state) for state in states]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_frozen_weights_of_the_lstm_stay_to_the_bit(optimizer):
    model, examples = small(), some_tokens(40)
    before, mask = read_state(model), build_mask(MaskRecipe(seed=1, ratio=0.4), trainable(model))
    make = make_optimizer(optimizer, lr=0.1, momentum=0.9, weight_decay=0.1)
    train(model, examples, batch_order(40, 10, numpy_generator(0, "batches")), [(mask, 6)], optimizer=make)
    for name, tensor in read_state(model).items():
        assert torch.equal(tensor[~mask[name]], before[name][~mask[name]])
        assert not torch.equal(tensor[mask[name]], before[name][mask[name]])


def test_layers_have_masks_of_their_own():
    mask = build_mask(MaskRecipe(seed=1, ratio=0.5, granularity="neuron"), trainable(small()))
    assert torch.equal(mask["lstm1.weight_hh_l0"][:, 0], mask["lstm1.bias_hh_l0"])
    assert not torch.equal(mask["lstm1.bias_hh_l0"], mask["lstm2.bias_hh_l0"])


def test_inspection_finds_nothing_wrong_with_the_lstm():
    found = inspect_model(partial(build, "lstm", (20,), 2, seed=0, width_multiplier=0.125), (20,), 2, tokens=True)
    assert {finding.level for finding in found.findings} == {"ok"}
    assert [finding.check for finding in found.findings][-3:] == ["repeat", "backward", "state"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor([[3, 1000, 2]]), "token 1000 is outside the vocabulary of lstm, 0 to 999"),
        (torch.tensor([[3, -1, 2]]), "token -1 is outside"),
        (torch.zeros(2, 6), r"int64 tokens \(batch, length\), not torch.float32 \(2, 6\)"),
        (torch.zeros(6, dtype=torch.int64), r"not torch.int64 \(6,\)"),
    ],
)
def test_what_is_no_token_of_the_vocabulary_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        small()(inputs)


def test_images_and_settings_of_other_models_are_refused():
    with pytest.raises(ValueError, match=r"rows of tokens \(length,\), not inputs of shape \(3, 32, 32\)"):
        build("lstm", (3, 32, 32), 10, seed=0)
    (fault,) = find_faults("lstm", norm="batch", hidden=2, width=200, width_multiplier=2.0)
    assert "takes no norm" in fault


def test_the_lstm_learns_the_word_that_tells_reviews_apart(tmp_path):
    data = load_reviews(write_reviews(tmp_path / "data", count=100, words=8), tmp_path)
    # the same reviews with less padding: the last 12 tokens
    examples, test = (Examples.from_arrays(s.inputs[:, -12:].copy(), s.labels) for s in (data.train, data.test))
    model = build("lstm", (12,), data.num_classes, seed=0, width_multiplier=0.125)
    batches = batch_order(len(examples), 32, numpy_generator(0, "batches"))
    train(model, examples, batches, [(None, 80)], optimizer=make_optimizer("adam", lr=0.01))
    assert evaluate(model, test).accuracy > 0.9
