"""The question that people open the page with, answered in a sentence made from the records."""

from __future__ import annotations

from qbench import escape
from qbench.report import tables
from qbench.results.ranking import Ranking, label
from qbench.results.record import Record

NAME = 60  # characters of a name
ALIKE = "indistinguishable"
UNSURE = {"not interleaved": "not interleaved", "too few": "too few independent samples"}
NO_LOSS = (ALIKE, "drift", "unverified")  # verdicts in which no loss was found


def answer(ranking: Ranking) -> str:
    """Which variant is fastest without a loss, and what is faster at which price.

    Only what the table claims is claimed here: "faster" after the correction for the number of
    rows, and a verdict with its question mark where it is not settled.
    """
    ran = [r for r in ranking.records if r.status == "ok"]
    if not ran:
        statuses = sorted({r.status for r in ranking.records})
        return f"Nothing ran to its end: {', '.join(statuses)}."
    reference = ranking.reference
    if reference is None:
        return "There is no sound run of the reference here, so nothing is compared with it."
    others = [r for r in ran if r is not reference and not r.recipe.noise_floor]
    if not others:
        return f"Only the reference, {_name(reference, ranking)}, was measured here."
    timed = [r for r in others if ranking.timing(r).speed_up]
    return _timed(timed, ranking, reference) if timed else _untimed(others, ranking)


def _timed(timed: list[Record], ranking: Ranking, reference: Record) -> str:
    against = _name(reference, ranking)
    quick = [r for r in timed if _faster(r, ranking) and _verdict(r, ranking) != "broken"]
    quick.sort(key=lambda r: -_ratio(r, ranking))
    if not quick:
        return _none(timed, ranking, against)
    if not any(_verdict(r, ranking) for r in timed):
        told = f"{_name(quick[0], ranking)} is the fastest: {_speed(quick[0], ranking)} over"
        return f"{told} {against}; quality was not measured here."
    alike = [r for r in quick if _settled(r, ranking) and _verdict(r, ranking) == ALIKE]
    sound = [r for r in quick if _verdict(r, ranking) in NO_LOSS]
    if alike:
        best = alike[0]
        text = f"{_name(best, ranking)} is the fastest that is as good as {against}: "
        text += _speed(best, ranking)
    elif sound:
        best = sound[0]
        text = f"{_name(best, ranking)} is the fastest in which no loss against {against} was "
        text += f"found: {_speed(best, ranking)}, {_words(best, ranking)}"
    else:
        best = quick[0]
        text = f"Nothing faster than {against} is as good; the fastest is {_name(best, ranking)}: "
        text += f"{_speed(best, ranking)}, {_words(best, ranking)}"
    # Of what is faster still: the fastest without a loss, and the fastest of all.
    more = {r.run: r for r in (*sound[:1], quick[0]) if _ratio(r, ranking) > _ratio(best, ranking)}
    said = [
        f"{_name(r, ranking)} is faster at {_words(r, ranking)}: {_speed(r, ranking)}"
        for r in more.values()
    ]
    return "; ".join([text, *said]) + "."


def _none(timed: list[Record], ranking: Ranking, against: str) -> str:
    """Nothing is faster and not broken; what came nearest, and why it does not count."""
    unbroken = [r for r in timed if _verdict(r, ranking) != "broken"]
    best = max(unbroken or timed, key=lambda r: _ratio(r, ranking))
    text = f"Nothing here was shown to be faster than {against}"
    if _ratio(best, ranking) <= 1:
        return f"{text}."
    price = "broken" if _verdict(best, ranking) == "broken" else ranking.speed_word(best)
    told = _speed(best, ranking) + (f", {price}" if price and price not in UNSURE else "")
    return f"{text}; {_name(best, ranking)} came nearest: {told}."


def _untimed(others: list[Record], ranking: Ranking) -> str:
    """Of runs without a latency that may be compared: the closest, and the smallest."""
    said = []
    close = [r for r in others if "psnr" in r.quality and _verdict(r, ranking) in NO_LOSS]
    if close:
        best = max(close, key=lambda r: r.quality["psnr"].value)
        psnr = f"{best.quality['psnr'].value:.1f} dB"
        said.append(
            f"{_name(best, ranking)} is closest to the reference: {psnr}, {_words(best, ranking)}"
        )
    small = [r for r in others if r.weights_bytes and _verdict(r, ranking) in (*NO_LOSS, "")]
    if small:
        least = min(small, key=lambda r: r.weights_bytes or 0)
        size = tables.bytes_text(least.weights_bytes)
        price = f", at {_words(least, ranking)}" if _verdict(least, ranking) else ""
        said.append(f"{_name(least, ranking)} has the smallest weights: {size}{price}")
    return "; ".join(["No latency is compared here", *said]) + "."


def _name(record: Record, ranking: Ranking) -> str:
    return escape.clipped(escape.plain(label(record, ranking)), NAME)


def _ratio(record: Record, ranking: Ranking) -> float:
    ratio = ranking.timing(record).speed_up
    return ratio.value if ratio else 0.0


def _faster(record: Record, ranking: Ranking) -> bool:
    """Whether it may be called faster; what carries no claim in the table says why beside it."""
    ratio, word = ranking.timing(record).speed_up, ranking.speed_word(record)
    if ratio is None or ratio.value <= 1:
        return False
    return word == "faster" or (word in UNSURE and ratio.low > 1)


def _speed(record: Record, ranking: Ranking) -> str:
    ratio, word = ranking.timing(record).speed_up, ranking.speed_word(record)
    if ratio is None:
        return ""
    text = f"{ratio.value:.2f}x"
    if ratio.n is None or ratio.n >= tables.FEW:
        text += f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    limits = [f"n = {ratio.n}"] if ratio.n is not None and ratio.n < tables.FEW else []
    limits += [UNSURE[word]] if word in UNSURE and not limits else []
    return text + (f" ({', '.join(limits)})" if limits else "")


def _verdict(record: Record, ranking: Ranking) -> str:
    judged = ranking.judged.get(record.run)
    return judged.verdict if judged else ""


def _words(record: Record, ranking: Ranking) -> str:
    judged = ranking.judged.get(record.run)
    if judged is None:
        return "unknown quality"
    return judged.verdict + ("" if judged.shown else ", not settled")


def _settled(record: Record, ranking: Ranking) -> bool:
    judged = ranking.judged.get(record.run)
    return judged is not None and judged.shown
