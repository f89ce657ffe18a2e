"""Decisions from records: compare two, pick one, follow one over time, take in another's."""
