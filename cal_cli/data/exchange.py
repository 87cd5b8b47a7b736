"""Exchanges within groups: each member that takes part receives what another one has, without a conflict."""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

Conflict = Callable[[int, int], bool]
ATTEMPTS = 30  # random partners to try before a search
FAILURES = 100  # failed searches, one after the other, after which there is little hope
POOL = 2000  # members among which a search looks
CHECKS = 20_000  # pairs that it looks at: all of them for up to 140 members


def exchange(
    groups: Iterable[Sequence[int]],
    count: int,
    conflicts: Sequence[Conflict],
    generator: random.Random,
    arrange: Callable[[Sequence[int]], Sequence[int]] = list,
) -> dict[int, int]:
    """Let up to `count` members of groups exchange what they have, each with members of its own group.

    The chosen members of a group form one random cycle, in which each receives what the next one has. A member that
    cannot be chained without a conflict takes part by a shorter cycle: it takes what another member has or receives,
    that one what a third has or receives, and the last one takes what the first has. If there is no such cycle, it
    keeps what it has, and another member takes its place.

    Args:
        groups: the members, which are numbers; each is in one group.
        count: how many are to take part.
        conflicts: whether a member may not receive what another has. A member is in conflict with itself. The first
            is the strictest; the next ones are used in turn if too few members can take part.
        generator: of the random choices.
        arrange: orders the chosen members of a group, which each receive what the next one has.

    Returns:
        For each member that takes part the one whose possession it receives: a permutation of fewer than `count` only
        if no more were found.
    """
    groups = list(groups)
    group_of = {member: group for group in groups for member in group}
    members = sorted(group_of)
    chosen = generator.sample(members, count)
    donors: dict[int, int] = {}
    for group in groups:
        cycle = make_cycle(arrange([member for member in chosen if group_of[member] is group]), conflicts[0])
        donors |= dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    in_order = [*chosen, *generator.sample(members, len(members))]
    for conflict in conflicts:
        include(in_order, group_of, donors, count, conflict, generator)
    return donors


def make_cycle(members: Sequence[int], conflict: Conflict) -> list[int]:
    """Chain members in their order so that none is in conflict with the next, the first one after the last included.

    A member in conflict with the end of the chain waits for another end; those that wait to the last are left out.
    """
    cycle: list[int] = []
    waiting: deque[int] = deque()
    for member in members:
        if cycle and conflict(cycle[-1], member):
            waiting.append(member)
            continue
        cycle.append(member)
        while waiting and not conflict(cycle[-1], waiting[0]):
            cycle.append(waiting.popleft())
    while cycle and conflict(cycle[-1], cycle[0]):
        cycle.pop()
    return cycle


def include(
    members: Sequence[int],
    group_of: dict[int, Sequence[int]],
    donors: dict[int, int],
    count: int,
    conflict: Conflict,
    generator: random.Random,
) -> None:
    """Let members take part, in their order, until `count` do; modifies `donors`."""
    failures = 0
    for member in members:
        if len(donors) >= count or failures >= FAILURES:
            return
        if member in donors:
            continue
        cycle = find_cycle(member, group_of[member], donors, count - len(donors), conflict, generator)
        failures = 0 if cycle else failures + 1
        received = [donors.get(taker, taker) for taker in cycle]
        donors |= dict(zip(cycle, received[1:] + received[:1], strict=True))


def find_cycle(
    start: int, group: Sequence[int], donors: dict[int, int], room: int, conflict: Conflict, generator: random.Random
) -> list[int]:
    """Find members that can pass on what they receive, each taking that of the next one, without a conflict.

    At most `room` of them, `start` included, do not take part yet. Returns an empty list if none are found.
    """

    def can_take(taker: int, other: int) -> bool:
        return not conflict(taker, donors.get(other, other))

    for _ in range(ATTEMPTS):
        other = generator.choice(group)
        if other != start and (other in donors or room > 1) and can_take(start, other) and can_take(other, start):
            return [start, other]
    sampled = generator.sample(group, min(len(group), POOL))
    allowed = [taker for taker in sampled if taker != start and (taker in donors or room > 1)]
    before: dict[int, int] = {}
    new = {start: 1}  # members on the way from the start that do not take part yet
    waiting, checks = deque([start]), 0
    while waiting and allowed and checks < CHECKS:
        taker = waiting.popleft()
        rest = []
        for other in allowed:
            joined = new[taker] + (other not in donors)
            checks += 1
            if joined > room or not can_take(taker, other):
                rest.append(other)
                continue
            before[other], new[other] = taker, joined
            if can_take(other, start):
                way = [other]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            waiting.append(other)
        allowed = rest
    return []
