"""Calls as a CUDA graph: a replay launches all their kernels at once, so no host is too slow for a short kernel."""

from collections.abc import Callable

import torch

from fusedformer.benchmarks.harness.timing import Run

WARM_UP_CALLS = 3  # as torch.cuda.graph wants them: compilers, allocators and libraries set themselves up


def captured(run: Run, calls: int) -> Callable[[], None]:
    """Record that many calls on the current stream, which must not be the default one; replay them all when called.

    What the calls return lives as long as the graph: a replay writes there.

    Raises:
        RuntimeError: a call does what a graph cannot hold, such as waiting for the GPU.
    """
    for _ in range(max(WARM_UP_CALLS, calls)):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        kept = [run() for _ in range(calls)]

    def replay() -> None:
        graph.replay()

    replay.kept = kept  # type: ignore[attr-defined]
    return replay
