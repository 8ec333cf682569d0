"""Damaged files of every kind are read, or refused in one sentence (InputError)."""

from dataclasses import replace
from random import Random

import pytest

from recombinator.study import fuzz, fuzz_kinds, mutate
from recombinator.study.samples import make_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "samples"
    make_samples(folder)
    return folder


def test_undamaged_samples_are_read(samples, tmp_path):
    """Otherwise a mutation of them would prove nothing."""
    with fuzz._silence():
        for name, kind in fuzz_kinds.kinds(samples).items():
            for i, sample in enumerate(sorted(set(kind.samples))):
                undamaged = replace(kind, damage=lambda path, rng: None)
                ended = fuzz._attempt(undamaged, samples, sample, tmp_path / f"{name}{i}", Random(0), 60)
                assert ended == (fuzz.FINE, ""), (name, sample)


def test_damaged_files_lead_to_sentences(samples, monkeypatch):
    monkeypatch.setattr(fuzz, "make_samples", lambda folder: fuzz.shutil.copytree(samples, folder))
    outcome = fuzz.fuzz(120, seed=3, seconds=60)
    assert not outcome.faults, outcome.faults[0]
    total = sum(outcome.counts.values(), start=fuzz.Counter())
    assert total.total() == 120 and total[fuzz.SENTENCE] > 40 and total[fuzz.FINE] > 10
    assert len(outcome.counts) == len(fuzz_kinds.kinds(samples)) and all(outcome.counts.values())


def test_faults_are_counted_and_kept(samples, tmp_path, monkeypatch):
    """A reader that fails, one that gives NaN and one that does not end are told apart."""

    def broken(path):
        raise KeyError("field")

    def endless(path):
        while True:
            pass

    readers = {"broken": broken, "nan": lambda path: {"x": [float("nan")]}, "endless": endless}
    made = {n: fuzz_kinds.Kind(("points/rows.csv",), mutate.damage_bytes, read) for n, read in readers.items()}
    monkeypatch.setattr(fuzz, "make_samples", lambda folder: fuzz.shutil.copytree(samples, folder))
    monkeypatch.setattr(fuzz, "kinds", lambda folder: made)
    outcome = fuzz.fuzz(3, seconds=0.3, keep=tmp_path)
    assert [fault[:2] for fault in outcome.faults] == [("broken", 0), ("nan", 1), ("endless", 2)]
    assert outcome.counts["broken"][fuzz.TRACEBACK] == outcome.counts["nan"][fuzz.NOT_FINITE] == 1
    assert outcome.counts["endless"][fuzz.SLOW] == 1 and "KeyError: 'field'" in outcome.faults[0][2]
    again = fuzz.fuzz(3, only=0)
    assert again.faults == outcome.faults[:1] and (tmp_path / "0" / "rows.csv").is_file()
