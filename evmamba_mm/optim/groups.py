"""Parameter groups of an optimiser: merged, and found again in checkpoints."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

# Descriptions of a group, which no optimiser reads.
_LABELS = ('param_name', 'param_names', 'group_name', 'layer_id')
_MERGE_HINT = (
    "; without constructor='GroupedOptimWrapperConstructor' it can be resumed"
)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimiser or a schedule may read of a group."""
    return {
        key: value
        for key, value in group.items()
        if key != 'params' and key not in _LABELS
    }


def merge_equal_groups(optimizer: Optimizer) -> None:
    """Put parameters of equal settings into one group, in place.

    The optimiser then also loads a state dict with the groups it has now.

    Args:
        optimizer: Before its first step.

    Raises:
        ValueError: If the optimiser has a state, or a parameter is in several
            groups.
    """
    if optimizer.state:
        raise ValueError('the optimizer must not have made a step')
    old = optimizer.param_groups
    parameters = [p for group in old for p in group['params']]
    if len(set(parameters)) != len(parameters):
        raise ValueError('a parameter is in several groups of the optimizer')
    merged: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for group in old:
        settings = _settings(group)
        for known, target in merged:
            if known == settings:
                target['params'] += group['params']
                break
        else:
            merged.append(
                (settings, {'params': [*group['params']], **settings})
            )
    if len(merged) == len(old):
        return
    sizes = [len(group['params']) for group in old]
    places = {p: i for i, p in enumerate(parameters)}
    groups = [target for _, target in merged]
    # Where each parameter of the new groups stood in the old ones.
    order = [[places[p] for p in group['params']] for group in groups]
    # In place: the wrapper and schedules hold the list.
    old[:] = groups

    def adopt(_: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        found = [len(group['params']) for group in state['param_groups']]
        return _regrouped(state, order) if found == sizes else None

    optimizer.register_load_state_dict_pre_hook(adopt)


def _regrouped(
    state: dict[str, Any], order: list[list[int]]
) -> dict[str, Any]:
    """A state dict with a group a parameter, in the merged groups.

    Raises:
        ValueError: If parameters of a merged group differ in their settings,
            or schedules would need the settings of all the old groups.
    """
    groups = state['param_groups']
    by_place = [
        (number, group) for group in groups for number in group['params']
    ]
    starts = [
        {k: v for k, v in group.items() if k.startswith('initial_')}
        for group in groups
    ]
    if any(start != starts[0] for start in starts):
        raise ValueError(
            'the checkpoint was written with other parameter groups, whose '
            f'starting values differ{_MERGE_HINT}'
        )
    new_groups, new_state, count = [], {}, 0
    for places in order:
        settings = _settings(by_place[places[0]][1])
        numbers = []
        for place in places:
            number, group = by_place[place]
            if _settings(group) != settings:
                raise ValueError(
                    'the checkpoint was written with other parameter groups, '
                    f'whose settings differ{_MERGE_HINT}'
                )
            if number in state['state']:
                new_state[count] = state['state'][number]
            numbers.append(count)
            count += 1
        new_groups.append({**settings, 'params': numbers})
    return {**state, 'state': new_state, 'param_groups': new_groups}
