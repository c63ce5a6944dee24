"""YAML of a stranger: read within limits, and without running what its tags name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stategate.contract.reading import printable, read_bounded, text_with_controls

_MAX_BYTES = 1 << 20  # exporters write some kilobytes, and a megabyte takes seconds
# Of what the YAML stands for with its aliases written out: nine lines can name a thousand million.
_MAX_NODES = 1 << 16


class _Plain(yaml.SafeLoader):  # type: ignore[misc]  # it has no stubs
    """Takes what stands behind a tag of Python as the list, mapping or text that is written."""


def _as_written(loader: Any, suffix: str, node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_scalar(node)


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _as_written)


def load_yaml(path: Path) -> Any:
    """What a file holds, in plain lists, mappings and texts."""
    loader = _Plain(read_bounded(path, _MAX_BYTES))
    root = loader.get_single_node()
    _check_size(root, {})
    plain = loader.construct_document(root)
    controlled = text_with_controls(plain)
    if controlled is not None:
        raise ValueError(f"a control character in {printable(controlled)}")
    return plain


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the nodes that one stands for; an error where they are too many, or a key comes twice.

    An alias is looked into once, and counted as often as it is named.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = _MAX_NODES  # until it is known: a node that holds itself is endless
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            # PyYAML would take the last one without a word.
            raise ValueError(f"two values under one key among {', '.join(keys)}")
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    size = 1 + sum(_check_size(part, sizes) for part in inner)
    if size >= _MAX_NODES:
        raise ValueError(f"it stands for more than {_MAX_NODES:,} values")
    sizes[id(node)] = size
    return size
