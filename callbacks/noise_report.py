"""What weight noise will do in a run, as a sentence."""

from firstlight.functional.noise_schedule import NoiseSchedule
from firstlight.functional.perturb_weights import Groups, NoiseRule, summarise_noise

_MODES = {
    "round_robin": "one of {0} groups in turn gets Gaussian noise",
    "random": "one of {0} groups drawn at random gets Gaussian noise",
    "all": "all {0} groups get Gaussian noise, each of sigma / √{0}",
}


def opening_line(groups: Groups, schedule: NoiseSchedule, rule: NoiseRule) -> str:
    """Say which groups get noise, how large it is beside the weights, and when.

    Raises:
        ValueError: when nothing of the groups is trained.
    """
    found = summarise_noise(groups, schedule.largest, rule)
    beside = f"{found.lowest:.2g}"
    if f"{found.highest:.2g}" != beside:
        beside += f" to {found.highest:.2g}"
    text = (
        f"before each backward pass {_MODES[rule.mode].format(found.groups)} "
        f"(group_by={rule.group_by}, scale={rule.scale}); sigma {schedule}: at the largest "
        f"{beside} times the root mean square of a tensor's weights now. {found.small} of the "
        f"groups ({found.small / found.groups:.0%}) hold only biases or norm parameters. No pass "
        "is added; the clean weights are copied back before the update."
    )
    if found.zero:
        text += f" {found.zero} of {found.tensors} tensors are zero" + (
            " now." if rule.scale == "absolute" else " now, and get none while they are."
        )
    return text
