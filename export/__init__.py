"""From a model to a bundle: trace or adopt, check the graph, verify, seal."""

from stategate.common.dependencies import silence

silence()
