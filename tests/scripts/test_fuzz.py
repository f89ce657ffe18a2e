"""A small part of what scripts/fuzz.py tries: the same inputs every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import fuzz


@pytest.mark.parametrize("kind", ["recipes", "overrides", "prompts"])
def test_mutated_input_is_an_answer_or_one_line(kind: str) -> None:
    outcomes = [fuzz.attempt(kind, seed) for seed in range(60)]
    assert [outcome for outcome in outcomes if outcome.faulty] == []
    assert {outcome.word for outcome in outcomes} == {"ok", "refused"}  # neither all good nor bad


def test_mutated_records_are_shown_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz.few_records(fuzz.ROOT / "results" / "published" / "amd-epyc-2t", tmp_path)
    monkeypatch.setenv("QBENCH_FUZZ_RECORDS", str(tmp_path))
    outcomes = [fuzz.attempt("records", seed) for seed in range(6)]
    assert [outcome for outcome in outcomes if outcome.faulty] == []


def test_a_planted_traceback_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz.KINDS, "prompts", lambda dice, folder: {}["nothing"])
    outcome = fuzz.attempt("prompts", 0)
    assert outcome.faulty
    assert "KeyError" in outcome.detail
