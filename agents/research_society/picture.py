"""A picture of the society's graph, drawn from the compiled graph itself, without a browser or a
network.
"""

from pathlib import Path

import matplotlib as mpl
import networkx as nx
from langchain_core.runnables.graph import Graph
from matplotlib.figure import Figure

mpl.use("Agg")
HAS_TOOLS, PLAIN = "#ddf4ff", "#f6f8fa"


def draw(graph: Graph, with_tools: frozenset[str], path: Path) -> None:
    """Write a picture of a graph, top to bottom by distance from the start.

    Args:
        graph: as `get_graph()` returns it; conditional edges are drawn dashed.
        with_tools: nodes that loop with their tools.
    """
    drawn: nx.DiGraph[str] = nx.DiGraph()
    drawn.add_nodes_from(graph.nodes)
    drawn.add_edges_from((edge.source, edge.target) for edge in graph.edges)
    layers = _layers(drawn)
    for node, layer in layers.items():
        drawn.nodes[node]["layer"] = -layer
    layout = nx.multipartite_layout(drawn, subset_key="layer", align="horizontal")
    places = {node: (float(x), float(y)) for node, (x, y) in layout.items()}
    figure = Figure(figsize=(8, 10))
    axes = figure.add_axes((0, 0, 1, 0.95))
    across, down = zip(*places.values(), strict=True)
    axes.set_xlim(min(across) - 0.25, max(across) + 0.25)
    axes.set_ylim(min(down) - 0.15, max(down) + 0.15)
    axes.set_axis_off()
    axes.set_title("Research society (blue roles use tools; dashed edges are decisions)")
    conditional = {(edge.source, edge.target) for edge in graph.edges if edge.conditional}
    for source, target in drawn.edges:
        # Bent, so that it does not run through the nodes between.
        backwards = layers[target] <= layers[source]
        bend = 0.45 if backwards or (source, target) in conditional else 0.0
        axes.annotate(
            "",
            xy=places[target],
            xytext=places[source],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#57606a",
                "linestyle": "--" if (source, target) in conditional else "-",
                "connectionstyle": f"arc3,rad={bend}",
                "shrinkA": 16,
                "shrinkB": 16,
            },
        )
    for node, (x, y) in places.items():
        colour = HAS_TOOLS if node in with_tools else PLAIN
        box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#57606a"}
        axes.text(x, y, str(node).strip("_").replace("_", " "), ha="center", va="center", bbox=box)
    figure.savefig(path, dpi=150)


def _layers(graph: "nx.DiGraph[str]") -> dict[str, int]:
    """Return each node's longest distance from the start, over edges that do not lead back."""
    forward = nx.DiGraph(graph)
    while not nx.is_directed_acyclic_graph(forward):
        # One edge of each circle, until none is left. What is removed leads back to an earlier
        # node.
        forward.remove_edge(*nx.find_cycle(forward, "__start__")[-1][:2])
    return {
        node: layer
        for layer, nodes in enumerate(nx.topological_generations(forward))
        for node in nodes
    }
