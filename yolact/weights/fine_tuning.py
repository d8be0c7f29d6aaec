"""The weights that fine-tuning starts from, where the classes may be others than those of the checkpoint."""

from __future__ import annotations

import logging

from torch import Tensor

from yolact.config import Classes
from yolact.model import Yolact
from yolact.settings import differences
from yolact.weights.files import is_plain
from yolact.weights.load import Checkpoint, load_state
from yolact.weights.state import count_classes
from yolact_runtime.errors import counted
from yolact_runtime.typed import first_few

log = logging.getLogger(__name__)

_LOGITS = "prediction_layers.0.conf_layer."
# The layers whose shape depends on the number of classes.
CLASS_LAYERS = (_LOGITS, "semantic_seg_conv.", "maskiou_net.maskiou_net.10.")


def load_for_fine_tuning(model: Yolact, checkpoint: Checkpoint, source: str) -> None:
    """Give `model` the weights of a checkpoint that may have been trained for other classes.

    In the layers that depend on the classes, those with a name that both have keep their weights, and the
    others their initial values. If no name is in both, or the names of the checkpoint are not known, these
    layers are kept if their shapes fit, and keep their initial values otherwise. Everything else must fit.
    Averaged weights are used if there are some.

    Raises:
        YolactError: another network; names the keys that do not fit.
    """
    state = dict(checkpoint.ema or checkpoint.model)
    initial = model.state_dict()
    old, new = checkpoint.config.classes, model.config.classes
    known = checkpoint.classes_known and count_classes(state) == len(old)
    pairs = _same_names(old, new) if known and old.names != new.names else {}
    fresh = []
    for key in (key for key in initial if key.startswith(CLASS_LAYERS) and key in state):
        if pairs:
            state[key] = _by_name(key, initial[key], state[key], pairs, old, new)
        elif state[key].shape != initial[key].shape:
            fresh.append(key)
    before = count_classes(checkpoint.model)
    load_state(model, {**state, **{key: initial[key] for key in fresh}}, source)
    changed = differences(checkpoint.config.model, model.config.model, "model.")
    if changed:
        lines = (f"{name} {there} -> {here}" for name, (there, here) in changed.items())
        log.warning(
            "fine-tuning from %s with other settings than it was trained with: %s", source, ", ".join(lines)
        )
    if pairs:
        names = first_few([new.names[index] for index in pairs])
        others = "; the others start anew" if len(pairs) < len(new) else ""
        count = counted(len(new), "class", "classes")
        log.info("fine-tuning from %s: %d of %s kept by name: %s%s", source, len(pairs), count, names, others)
    elif fresh:
        layers = sorted({key.rpartition(".")[0] for key in fresh})
        why = f"{len(new)} classes instead of {before}"
        log.info("fine-tuning from %s: %s, so these layers start anew: %s", source, why, ", ".join(layers))
    elif not known:
        log.info("fine-tuning from %s: as many classes, which it does not name; all layers are kept", source)
    elif old.names != new.names:
        log.info("fine-tuning from %s: as many classes with other names; all layers are kept", source)
    else:
        log.info("fine-tuning from %s: the same classes; all layers are kept", source)


def _same_names(old: Classes, new: Classes) -> dict[int, int]:
    """Indices of the new classes whose names the old ones have, to the indices of these."""
    indices = {name: index for index, name in reversed(list(enumerate(old.names)))}
    return {index: indices[name] for index, name in enumerate(new.names) if name in indices}


def _by_name(
    key: str, initial: Tensor, stored: Tensor, pairs: dict[int, int], old: Classes, new: Classes
) -> Tensor:
    """The initial values of a class layer, with those stored for classes that both have.

    Args:
        key: Of the layer's weight or bias.
        initial, stored: (rows, ...); stored is returned as it is if it is of another network.
        pairs: Indices of new classes to those of old ones.
        old, new: The classes.
    """
    logits = key.startswith(_LOGITS)  # those of each prior in a cell: background, then the classes
    cells = initial.shape[0] // (len(new) + 1) if logits else 1
    fits = stored.shape == (cells * (len(old) + logits), *initial.shape[1:])
    if not (fits and is_plain(stored) and stored.is_floating_point()):
        return stored
    rows = {0: 0} | {to + 1: source + 1 for to, source in pairs.items()} if logits else pairs
    kept = initial.clone().unflatten(0, (cells, -1))  # (cells, rows of a cell, ...)
    kept[:, list(rows)] = stored.unflatten(0, (cells, -1))[:, list(rows.values())].to(kept)
    return kept.flatten(0, 1)
