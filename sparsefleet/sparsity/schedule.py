"""When a pruner acts, and how dense the network is afterwards. A function of the step alone, so a resumed trial repeats it."""

from __future__ import annotations

from sparsefleet.sparsity.vocabulary import Cubic, Iterative, Linear, OneShot, Schedule


def pruning_steps(schedule: Schedule, total_steps: int) -> list[int]:
    """Steps (number of finished optimizer steps) at which the network is pruned, ascending; the last one reaches the target."""
    if isinstance(schedule, OneShot):
        return [round(schedule.at * total_steps)]
    begin, end = round(schedule.begin * total_steps), round(schedule.end * total_steps)
    if isinstance(schedule, Iterative):
        return sorted({begin + round(i * (end - begin) / schedule.levels) for i in range(1, schedule.levels + 1)})
    return sorted({*range(begin + schedule.every, end, schedule.every), end})


def density_at(schedule: Schedule, step: int, total_steps: int, final: float) -> float:
    """The density that the schedule asks for after ``step``, from 1 down to ``final``.

    Linear in sparsity, or cubic: ``s_t = s_f * (1 - (1 - p)**3)`` (arXiv 1710.01878, Eq. 1, with s_0 = 0), where p runs from 0 at begin
    to 1 at end. Iterative keeps ``final ** (1 / levels)`` at each level (arXiv 1803.03635).
    """
    steps = pruning_steps(schedule, total_steps)
    if step < steps[0]:
        return 1.0
    if step >= steps[-1]:
        return final
    if isinstance(schedule, Iterative):
        level = sum(s <= step for s in steps)
        return float(final ** (level / len(steps)))
    assert isinstance(schedule, (Linear, Cubic))  # one-shot has one step and was answered above
    begin, end = round(schedule.begin * total_steps), round(schedule.end * total_steps)
    p = (step - begin) / (end - begin)
    share = p if isinstance(schedule, Linear) else 1.0 - (1.0 - p) ** 3
    return 1.0 - (1.0 - final) * share
