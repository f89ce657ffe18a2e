"""A pick as lines for a terminal."""

from __future__ import annotations

from qbench.decisions.picked import Candidate, Criterion, Picked

ROWS = 40  # variants that are listed
MARKS = {"met": "met", "unsettled": "unsettled", "missed": "NOT MET"}


def lines(made: Picked) -> list[str]:
    """Plain text; what comes from records is not escaped yet."""
    said = [made.measured]
    if made.pick is None:
        said.append("nothing qualifies")
        if made.nearest is not None:
            said += [f"nearest: {made.nearest.variant}", *_criteria(made.nearest)]
            if not made.nearest.missed:
                said.append("  --accept-unsettled would take it")
    else:
        said += [f"pick: {made.pick.variant}", *_criteria(made.pick)]
        if made.next is not None:
            said.append(f"  against the next, {made.next.variant}:")
            said += [f"    gains {item}" for item in made.gains]
            said += [f"    gives up {item}" for item in made.gives_up or ("nothing measured",)]
        said.append(f"  export: {made.export}")
    rest = [c for c in made.qualify[2:] if c is not made.next]
    if rest:
        said.append(f"qualify too: {', '.join(c.variant for c in rest)}")
    left = [c for c in made.others if c is not made.nearest]
    if left:
        said.append("do not qualify:")
        said += [f"  {c.variant}: {_why(c)}" for c in left[:ROWS]]
        said += [f"  and {len(left) - ROWS} more"] if len(left) > ROWS else []
    return said + [f"note: {note}" for note in made.notes]


def _criteria(candidate: Candidate) -> list[str]:
    return [f"  {c.name}: {c.said} - {_mark(c)}" for c in candidate.criteria]


def _mark(criterion: Criterion) -> str:
    return MARKS[criterion.result]


def _why(candidate: Candidate) -> str:
    if not candidate.missed:
        return "; ".join(f"{c.name}: {c.said}, unsettled" for c in candidate.unsettled)
    return "; ".join(f"{c.name}: {c.said}" for c in candidate.missed)
