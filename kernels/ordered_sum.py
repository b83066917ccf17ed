"""The sum of what all programs of a launch have summed up, always in the same order."""

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(place, value, counter_ptr, number):
    """Stores ``value``. True in the last of ``number`` programs to come here, which may read what the others stored."""
    tl.store(place, value)
    tl.debug_barrier()
    return tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == number - 1


@triton.jit
def finish_sum(partial_ptr, counter_ptr, loss_ptr, value, scale, num_partials, TEAM: tl.constexpr):
    """Adds up the programs' sums. The last program of a team to arrive adds up the team's sums, and the last of these
    adds up the teams'. Both go in the order of the programs, so the result never depends on the order of arrival.

    partial_ptr: [programs + teams]. counter_ptr: [1 + teams], zeros; each is zero again when the launch ends, because
    the last to arrive at a counter sets it back. So the next launch on this stream finds zeros.
    """
    team = tl.program_id(0) // TEAM
    num_teams = tl.cdiv(num_partials, TEAM)
    members = tl.minimum(num_partials - team * TEAM, TEAM)
    if last_to_arrive(partial_ptr + tl.program_id(0), value, counter_ptr + 1 + team, members):
        tl.store(counter_ptr + 1 + team, 0)
        index = tl.arange(0, TEAM)
        own = tl.load(partial_ptr + team * TEAM + index, mask=index < members, other=0.0, volatile=True)
        team_ptr = partial_ptr + num_partials
        if last_to_arrive(team_ptr + team, tl.sum(own), counter_ptr, num_teams):
            tl.store(counter_ptr, 0)
            total = tl.zeros([TEAM], value.dtype)
            for begin in range(0, num_teams, TEAM):
                total += tl.load(team_ptr + begin + index, mask=begin + index < num_teams, other=0.0, volatile=True)
            tl.store(loss_ptr, tl.sum(total) * scale)
