"""What starts next on several devices: dependences, kinds, parts, room for large runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

from qbench.run.order import Order, Site, Start
from qbench.run.parts import Load


def _load(
    name: str, group: str = "fp32", *, units: int = 1, work: float = 10, **more: float
) -> Load:
    return Load(name, group, name == group, "cuda", units, work, **more)


def _order(*loads: Load, **kinds: int) -> Order:
    """Nodes of so many devices each, by the kind that their name begins with."""
    order = Order()
    for name, total in kinds.items():
        order.join(Site(name, name.partition("_")[0], "cuda", total, total))
    order.add(*loads)
    return order


def _started(order: Order, now: float = 0) -> list[Start]:
    return list(iter(lambda: order.start(now), None))


def _names(starts: list[Start]) -> list[str]:
    return [start.load.name for start in starts]


def test_reference_runs_before_what_is_compared_with_it_and_all_on_its_kind() -> None:
    loads = [_load(name) for name in ("fp32", "int8", "fp8", "int4")]
    order = _order(*loads, h100=2, a100=8)
    first = _started(order)
    assert _names(first) == ["fp32"]
    order.ended("fp32", 10)
    later = _started(order, 10)
    assert sorted(_names(later)) == ["fp8", "int4", "int8"]
    assert {start.site for start in (*first, *later)} == {"a100"}


def test_rankings_are_given_to_kinds_by_what_each_has_to_do() -> None:
    rankings = [
        [_load(f"r{i}", f"r{i}"), *(_load(f"r{i}/{j}", f"r{i}") for j in range(9))]
        for i in range(4)
    ]
    order = _order(*(load for loads in rankings for load in loads), fast=3, slow=1)
    taken: dict[str, set[str]] = {}
    now = 0.0
    while order.left():
        starts = _started(order, now)
        assert starts
        for start in starts:
            taken.setdefault(start.load.group, set()).add(start.site)
        now += 10
        for start in starts:
            order.ended(start.load.name, now)
    assert all(len(sites) == 1 for sites in taken.values())
    assert sorted(site for sites in taken.values() for site in sites) == ["fast"] * 3 + ["slow"]


def test_run_that_would_outlast_the_others_is_made_in_parts_and_then_put_together() -> None:
    order = _order(_load("fp32", shared=100.0, least=10.0), _load("int8"), node=4)
    parts = _started(order)
    assert len(parts) == 4
    of = parts[0].load.part[1] if parts[0].load.part else 0
    assert 4 <= of <= 10  # a smaller part is not worth its start
    ended = 0
    while parts:
        for start in parts:
            assert start.load.whole == "fp32"
            order.ended(start.load.name, 10)
        ended += len(parts)
        parts = _started(order, 10) if ended < of else []
    assert ended == of
    (whole,) = _started(order, 20)
    assert whole.load == _load("fp32", least=10.0)
    order.ended("fp32", 30)
    assert _names(_started(order, 30)) == ["int8"]


def test_parts_of_a_run_that_is_complete_are_not_made() -> None:
    order = _order(_load("fp32", shared=100.0, least=10.0), node=2)
    first, second = _started(order)
    order.ended("fp32", 1, measured=False)
    order.ended(first.load.name, 1, measured=False)
    order.ended(second.load.name, 1, measured=False)
    assert not order.left()
    assert order.sites["node"].free == 2


def test_node_is_kept_free_for_a_run_that_takes_several_devices() -> None:
    order = _order(_load("fp32", work=1), a=4, a_2=4)
    _started(order)
    order.ended("fp32", 1)
    order.add(*(_load(f"small{i}") for i in range(4)))
    starts = _started(order, 1)
    assert len(starts) == 4
    order.add(_load("large", units=4), *(_load(f"more{i}") for i in range(9)))
    more = _started(order, 1)
    assert len({start.site for start in more}) == 1  # the other node is kept
    now = 1.0
    running = starts + more
    while "large" not in _names(running):
        now += 10
        for start in running:
            order.ended(start.load.name, now)
        running = _started(order, now)
        assert now < 60
    assert next(start for start in running if start.load.name == "large").site in ("a", "a_2")


def test_run_that_no_site_can_take_is_said_to_be() -> None:
    order = _order(_load("fp32"), _load("wide", units=8), node=4)
    assert {load.name for load in order.lacking()} == {"fp32", "wide"}
    order.join(Site("large", "node", "cuda", 8, 8))
    assert order.lacking() == []
    assert Order().start(0) is None


def test_lost_node_gives_its_runs_back_and_its_ranking_stays_with_its_kind() -> None:
    order = _order(*(_load(name) for name in ("fp32", "int8")), node_1=1, node_2=1, other=1)
    (first,) = _started(order)
    order.leave(first.site)
    order.again("fp32")
    (second,) = _started(order)
    assert second.load.name == "fp32"
    assert second.site != first.site
    order.ended("fp32", 9)
    assert _names(_started(order, 9)) == ["int8"]


def test_runs_of_about_one_length_are_not_made_in_parts_that_take_as_long_to_start() -> None:
    """Each is of three starts of a part: two devices end together without any."""
    loads = [_load(f"r{i}", work=1, shared=90.0, least=30.0, start=30.0) for i in range(8)]
    order = _order(*loads, node=2)
    now, started = 0.0, _started(order)
    names = _names(started)
    while order.left():
        now += 120
        for start in started:
            order.ended(start.load.name, now)
        started = _started(order, now)
        names += _names(started)
    assert sorted(names) == [f"r{i}" for i in range(8)]


def test_parts_of_a_reference_are_worth_their_start_as_well() -> None:
    """The others of its ranking wait for it: in rounds of parts they would wait longer."""
    loads = [_load("fp32", work=300, shared=3000.0, least=300.0, start=300.0)]
    loads += [_load(f"r{i}", work=3000) for i in range(3)]
    order = _order(*loads, node=4)
    assert [start.load.part for start in _started(order)] == [(i, 4) for i in range(4)]


def test_run_that_is_alone_has_a_part_for_each_device_and_not_one_more() -> None:
    """Whatever a division is rounded to: one more would be made when all others are done."""
    for devices, work in itertools.product(range(2, 60), (0.1, 1 / 3, 7.7, 123.4, 4567.8)):
        load = _load("fp32", work=work, shared=1e5 * work, least=work, start=1e9)
        starts = _started(_order(load, node=devices))
        assert {start.load.part for start in starts} == {(i, devices) for i in range(devices)}


def test_ranking_that_has_begun_is_not_given_to_a_kind_that_joins_later() -> None:
    order = _order(*(_load(name) for name in ("fp32", "int8")), h100=1)
    assert len(_started(order)) == 1
    order.join(Site("a100", "a100", "cuda", 8, 8))
    order.prefer("fp32", "a100")
    order.ended("fp32", 5)
    assert [start.site for start in _started(order, 5)] == ["h100"]


def _ended(order: Order, now: float, *starts: Start) -> None:
    for start in starts:
        order.ended(start.load.name, now)


def test_idle_devices_make_videos_of_what_waits_for_a_reference() -> None:
    """Else one of two devices waits for as long as the reference takes."""
    loads = [_load(name, work=10, shared=90.0, least=30.0, start=20.0) for name in ("fp32", "int8")]
    order = _order(*loads, node=2)
    first, second = _started(order)
    assert (first.load, first.early) == (loads[0], False)
    assert (second.load.whole, second.load.part, second.early) == ("int8", (0, 1), True)
    _ended(order, 90, second)
    assert _started(order, 90) == []  # the run itself is judged against its reference
    _ended(order, 100, first)
    (whole,) = _started(order, 100)
    assert whole.load == replace(loads[1], shared=0.0)
    assert not whole.early
    order.ended("int8", 120)
    assert not order.left()


def test_run_whose_part_still_goes_on_when_its_reference_has_ended_waits_for_it() -> None:
    loads = [_load(name, work=10, shared=90.0, least=30.0, start=20.0) for name in ("fp32", "int8")]
    order = _order(*loads, node=2)
    first, second = _started(order)
    _ended(order, 50, first)
    assert _started(order, 50) == []
    _ended(order, 110, second)
    assert _names(_started(order, 110)) == ["int8"]


def test_part_is_not_begun_beside_a_reference_that_ends_before_it_has_done_anything() -> None:
    for work, shared, more in (
        (20.0, 0.0, {}),  # as long as a start
        (400.0, 0.0, {"early": False}),
        (400.0, 0.0, {"shared": 0.0}),
    ):
        reference = _load("fp32", work=work, shared=shared)
        other = _load("int8", **{"shared": 900.0, "least": 20.0, "start": 20.0} | more)
        assert _names(_started(_order(reference, other, node=2))) == ["fp32"]
    order = _order(_load("fp32", work=400), _load("int8", shared=900.0), node=2)
    order.prefer("fp32", "node")  # it was complete before, so it ends at once
    assert _names(_started(order)) == ["fp32"]


def test_parts_made_early_come_after_all_that_can_start_as_a_whole() -> None:
    loads = [_load("fp32", work=500), *(_load(f"r{i}", shared=900.0, start=9.0) for i in range(3))]
    order = _order(*loads, _load("other", "other", work=20), node=2)
    assert _names(_started(order)) == ["fp32", "other"]
    order.ended("other", 20)
    (part,) = _started(order, 20)
    assert part.early
    order.again(part.load.name)  # its seat was lost
    (again,) = _started(order, 20)
    assert again == part


def test_equal_runs_on_two_devices_take_little_more_than_half_as_long_as_on_one() -> None:
    """Parts that only ward off bad luck cost more than it does, and one at the end as much."""
    # The last is what 256 videos of a small model are on a GPU: a start is two fifths of a run.
    cases = (
        (10, 10, 90.0, 1.85), (20, 10, 120.0, 1.85), (20, 10, 180.0, 1.85), (30, 4, 35.0, 1.84),
    )  # fmt: skip
    for start, own, videos, gain in cases:
        loads = [
            _load(name, work=own, shared=videos, least=start, start=start)
            for name in ("fp32", *(f"r{i}" for i in range(11)))
        ]
        order, now, parts = _order(*loads, node=2), 0.0, 0
        ends: list[tuple[float, Start]] = []
        while order.left():
            started = _started(order, now)
            parts += sum(one.load.part is not None for one in started)
            ends += [(now + start + one.load.work, one) for one in started]
            ends.sort(key=lambda end: end[0])
            now, one = ends.pop(0)
            _ended(order, now, one)
        assert parts == 1  # made beside the reference
        assert now < 12 * (start + own + videos) / gain


# Runs of 512 small videos as they were on an H200: seconds that each kept the device. Some wait for
# launches, which the order cannot know; the last has half the steps.
SECONDS = {
    "fp32": 53, "attention": 44, "bf16": 38, "fast": 57, "fp16": 46, "fp8": 47, "fp8-dynamic": 68,
    "fp8-tensor": 74, "int8": 45, "int8-dynamic": 93, "ladder": 45, "half-steps": 40,
}  # fmt: skip
RAY = 8  # seconds that a sweep takes besides


def _swept(devices: int, start: float, thought: float, first: float = 0.0) -> float:
    """Seconds of those runs. start: of them, what each takes to start, whatever is thought.

    first: what a device's first run waits besides, for what all of them import.
    """
    loads = [
        _load(name, work=597 * share, shared=5515 * share, least=350 * share, start=thought)
        for name in SECONDS
        for share in (0.5 if name == "half-steps" else 1.0,)
    ]
    pace = {load.name: (SECONDS[load.name] - start) / load.work for load in loads}
    order, now = _order(*loads, node=devices), 0.0
    events: list[tuple[float, bool, str]] = []
    fresh = devices
    while order.left():
        for one in _started(order, now):
            begun = now + (first if fresh > 0 else 0.0)
            fresh -= 1
            took = start + one.load.work * pace[one.load.whole or one.load.name]
            events += [(begun + start, False, one.load.name), (begun + took, True, one.load.name)]
        events.sort()
        now, over, name = events.pop(0)
        if over:
            order.ended(name, now)
        else:
            order.working(name, now, start)
    return now + RAY


def test_runs_share_two_devices_well_though_a_start_is_not_what_it_was_thought_to_be() -> None:
    """Learned from the first that start, it has none made in parts that cost more than they save.

    On one device a start is 1,800 units of work, about: it is thought to be a sixth, or six times.
    What only the first of a device waits for is no part of it.
    """
    for thought, start, first, gain in (
        (300, 12, 0, 1.89), (300, 16, 0, 1.87), (1800, 12, 0, 1.89), (10800, 12, 0, 1.84),
        (300, 2, 0, 1.93), (300, 4, 0, 1.9),  # a run that others come after is not the last
        (300, 2, 8, 1.91),
    ):  # fmt: skip
        alone, both = (_swept(devices, start, thought, first) for devices in (1, 2))
        assert alone / both > gain


def test_start_is_what_a_run_took_until_it_first_told_that_it_works() -> None:
    """It tells at each of the stages that make videos; a run that is not there tells nothing."""
    taken = []
    for told in ((20.0,), (20.0, 90.0)):
        order = _order(_load("fp32", shared=1000.0, least=10.0, start=10.0), node=1)
        _started(order)
        for now in told:
            order.working("fp32", now)
        order.working("int8", 5.0)
        order.ended("fp32", 120.0)
        taken.append((order._speeds.rate("node"), order._speeds.starting("node", 10.0)))
    assert taken[0] == taken[1]


def test_single_device_makes_no_parts() -> None:
    order = _order(_load("fp32", shared=1000.0, least=10.0), _load("int8", work=1), node=1)
    assert _names(_started(order)) == ["fp32"]
