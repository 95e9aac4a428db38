"""Eight-bit matrix products in ONNX files: the same numbers in every batch and on every CPU.

Each row of an input (one frame) gets its own scale and smallest value, so that the output of a
stream does not depend on those beside it; ``DynamicQuantizeLinear`` would take one scale for the
whole batch. Weights have one scale per output. With bytes q = 255 (x - low) / span,

    x W = span (q V) t / 255 + low (1 V) t,    where W is about V t: integers, a scale per output

Letters: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LARGEST_BYTE = 255  # of a row
LARGEST_WEIGHT = 127
# In the names of products that stay as they are: the search inside ``model.onnx``, and the last
# layer of CTC, a thousandth of the work, whose output is read as it is.
KEPT = ("/search/", "/ctc_output/")
# CPUs with AVX2 or AVX-512 but without VNNI multiply bytes of a row by weights and add the
# products of two neighbouring inputs in 16 bits. Larger sums saturate: the result is wrong.
PAIR_LIMIT = (2**15 - 1) // LARGEST_BYTE
SMALLEST_SPAN = 1e-30  # of a row, so that a constant one divides by no zero


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, N) float32 -> int8 (K, N) and scales (N,), whose product is about the weight.

    Two weights of neighbouring inputs have together at most the size ``PAIR_LIMIT``.
    """
    size = np.abs(weight)
    pairs = (size[:-1] + size[1:]).max(axis=0, initial=0)
    # Rounding adds at most 1 to a pair, which makes at most ``PAIR_LIMIT`` in integers.
    scale = np.maximum(size.max(axis=0) / LARGEST_WEIGHT, pairs / (PAIR_LIMIT - 0.5))
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    return np.round(weight / scale).astype(np.int8), scale


def quantize_matrices(source: Path, target: Path) -> None:
    """Writes a graph anew with its matrix products by weights in eight bits, but for ``KEPT``."""
    import onnx

    model = onnx.load(str(source))
    writer = _Writer(model.graph)
    for node in list(model.graph.node):
        weight = writer.weights.get(node.input[1]) if node.op_type == "MatMul" else None
        is_kept = any(part in node.name for part in KEPT)
        if weight is not None and len(weight.dims) == 2 and not is_kept:
            writer.replace(node, onnx.numpy_helper.to_array(weight))
        else:
            writer.nodes.append(node)
    writer.finish()
    target.write_bytes(model.SerializeToString())


class _Writer:
    """The nodes and constants of a graph while its products are replaced."""

    def __init__(self, graph: Any):
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[Any] = []
        # Names of an input -> names of its bytes (M, K), spans (M, 1) and smallest values (M, 1)
        self.rows: dict[str, tuple[str, str, str]] = {}
        for name, value in {
            "int8/step": np.float32(1 / LARGEST_BYTE),
            "int8/smallest_span": np.float32(SMALLEST_SPAN),
            "int8/no_offset": np.uint8(0),
        }.items():
            self._constant(name, value)

    def replace(self, product: Any, weight: np.ndarray) -> None:
        """Adds the nodes of ``product`` with its (K, N) ``weight`` in eight bits."""
        name = product.name
        row, span, low = self._quantized_rows(product.input[0])
        values, scale = quantize_weight(weight)
        self._constant(f"{name}/int8", values)
        self._constant(f"{name}/scale", scale / np.float32(LARGEST_BYTE))
        columns = values.sum(axis=0, dtype=np.int64) * scale.astype(np.float64)
        self._constant(f"{name}/columns", columns.astype(np.float32))
        sums = self._add("MatMulInteger", [row, f"{name}/int8"], f"{name}/integer_sums")
        sums = self._add("Cast", [sums], f"{name}/sums", to=1)  # float32
        sums = self._add("Mul", [sums, f"{name}/scale"], f"{name}/unscaled")
        sums = self._add("Mul", [sums, span], f"{name}/scaled")
        offset = self._add("Mul", [low, f"{name}/columns"], f"{name}/offset")
        self._add("Add", [sums, offset], product.output[0])

    def _quantized_rows(self, x: str) -> tuple[str, str, str]:
        """Returns the bytes, spans and smallest values of the rows of ``x``; its products share
        them."""
        if x not in self.rows:
            low = self._add("ReduceMin", [x], f"{x}/low", axes=[-1], keepdims=1)
            high = self._add("ReduceMax", [x], f"{x}/high", axes=[-1], keepdims=1)
            span = self._add("Sub", [high, low], f"{x}/span")
            span = self._add("Max", [span, "int8/smallest_span"], f"{x}/positive_span")
            row = self._add("Sub", [x, low], f"{x}/from_low")
            row = self._add("Div", [row, span], f"{x}/share")
            row = self._add("QuantizeLinear", [row, "int8/step", "int8/no_offset"], f"{x}/int8")
            self.rows[x] = (row, span, low)
        return self.rows[x]

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _constant(self, name: str, value: np.ndarray | np.generic) -> None:
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))

    def finish(self) -> None:
        """Gives the graph its new nodes, and removes the constants that none of them uses."""
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in _inputs(node)}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _inputs(node: Any) -> list[str]:
    """Returns the names that a node, and the graphs inside it (of loops and conditions), use."""
    inner = [graph for a in node.attribute for graph in (a.g, *a.graphs)]
    names = [name for graph in inner for n in graph.node for name in _inputs(n)]
    outputs = [value.name for graph in inner for value in graph.output]
    return [*node.input, *names, *outputs]
