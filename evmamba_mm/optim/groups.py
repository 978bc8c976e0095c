"""Parameter groups of an optimiser: merged, and found again in checkpoints."""

import logging
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

# Where a group's parameters stand among those of all groups before merging.
_POSITIONS = 'positions'
# Descriptions of a group, which no optimiser reads.
_LABELS = ('param_name', 'param_names', 'group_name', 'layer_id', _POSITIONS)
# How the step is computed: a choice of the optimiser as it was built.
_FORMS = ('fused', 'foreach', 'capturable')

_logger = logging.getLogger('evmamba_mm')


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimiser or a schedule may read of a group."""
    left_out = ('params', *_LABELS, *_FORMS)
    return {k: v for k, v in group.items() if k not in left_out}


def merge_equal_groups(
    optimizer: Optimizer, base: str = 'DefaultOptimWrapperConstructor'
) -> None:
    """Put parameters of equal settings into one group, in place.

    The optimiser then loads state dicts with the groups that it has now, and
    with those that it had. One that wraps another is left as it is.

    Args:
        optimizer: To change.
        base: Constructor that leaves groups as they were, for messages.

    Raises:
        ValueError: If a parameter is in several groups.
    """
    if any(isinstance(x, Optimizer) for x in vars(optimizer).values()):
        _logger.info(
            '%s keeps its parameter groups: it wraps another optimizer',
            type(optimizer).__name__,
        )
        return
    old = optimizer.param_groups
    parameters = [p for group in old for p in group['params']]
    if len(set(parameters)) != len(parameters):
        raise ValueError('a parameter is in several groups of the optimizer')
    places = {p: i for i, p in enumerate(parameters)}
    merged: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for group in old:
        settings = _settings(group)
        for known, target in merged:
            if known == settings:
                target['params'] += group['params']
                break
        else:
            kept = {k: v for k, v in group.items() if k not in _LABELS}
            kept['params'] = [*group['params']]
            merged.append((settings, kept))
    for _, group in merged:
        group[_POSITIONS] = [places[p] for p in group['params']]
    # In place: the wrapper and schedules hold the list.
    old[:] = [group for _, group in merged]

    def adopt(
        optimizer: Optimizer, state: dict[str, Any]
    ) -> dict[str, Any] | None:
        return _adopted(optimizer, state, base)

    optimizer.register_load_state_dict_pre_hook(adopt)


def _positions_of(groups: list[dict[str, Any]]) -> list[list[int]]:
    """Positions of the parameters of each group of a state dict."""
    positions: list[list[int]] = []
    count = 0
    for group in groups:
        # Without merging, the order of the groups is that of positions.
        first, count = count, count + len(group['params'])
        positions.append(group.get(_POSITIONS, list(range(first, count))))
    return positions


def _adopted(
    optimizer: Optimizer, state: dict[str, Any], base: str
) -> dict[str, Any] | None:
    """A state dict in the groups and the form of step of this optimiser.

    Raises:
        ValueError: If parameters of a group have other settings each, or a
            schedule would find those of another group in its place.
    """
    theirs = state['param_groups']
    own = optimizer.param_groups
    positions = _positions_of(theirs)
    found = {
        position: (number, group)
        for group, places in zip(theirs, positions, strict=True)
        for position, number in zip(places, group['params'], strict=True)
    }
    if found.keys() != {i for group in own for i in group[_POSITIONS]}:
        # Of another model: torch says what does not fit.
        return None
    if positions != [group[_POSITIONS] for group in own]:
        _check_starts(theirs, base)
    groups, numbered, count = [], {}, 0
    for group in own:
        settings = _settings(found[group[_POSITIONS][0]][1])
        for position in group[_POSITIONS]:
            number, source = found[position]
            if _settings(source) != settings:
                _refuse('settings', base)
            if number in state['state']:
                numbered[count] = state['state'][number]
            count += 1
        first = count - len(group[_POSITIONS])
        forms = {k: group[k] for k in _FORMS if k in group}
        groups.append(
            {
                **settings,
                **forms,
                _POSITIONS: group[_POSITIONS],
                'params': list(range(first, count)),
            }
        )
    return {**state, 'state': numbered, 'param_groups': groups}


def _check_starts(groups: list[dict[str, Any]], base: str) -> None:
    starts = [
        {k: v for k, v in group.items() if k.startswith('initial_')}
        for group in groups
    ]
    if any(start != starts[0] for start in starts):
        _refuse('starting values for schedules', base)


def _refuse(what: str, base: str) -> None:
    raise ValueError(
        'the checkpoint was written with other parameter groups, whose '
        f'{what} differ; to resume it, set optim_wrapper.constructor={base!r} '
        'and the paramwise_cfg that it was trained with'
    )
