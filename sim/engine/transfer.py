"""KV caches on their way from prefill to decode replicas, as flows that share links with everything else.

A request is prefilled on one replica, which samples its first token; its KV cache then moves to a decode replica. As in vLLM's
pull connectors the receiver first reserves the blocks, then the bytes flow from every sending rank to its peer, and the sender
keeps its blocks until they have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items

import simpy
from simpy.events import Event

from sim.engine.deployment import Deployment
from sim.engine.fluid import Capacity, Fluid
from sim.engine.kv_cache import PrefixPool
from sim.engine.replica import Replica
from sim.engine.sequence import WAITING, Sequence
from sim.engine.wires import Wires


class Route:
    """The ways from the ranks of one replica to those of another, for a byte of KV cache."""

    __slots__ = ("amounts_per_byte", "latency_s", "seconds_per_byte")

    def __init__(self, deployment: Deployment, senders: Items[str], receivers: Items[str], wires: Wires) -> None:
        topology = deployment.topology
        pairs = max(len(senders), len(receivers))
        routes = [
            topology.route(senders[i * len(senders) // pairs], receivers[i * len(receivers) // pairs])
            for i in range(pairs)
        ]
        self.amounts_per_byte: dict[Capacity, float] = {}
        for route in routes:
            for edge in route.edges:
                capacity = wires.capacity(edge)
                self.amounts_per_byte[capacity] = self.amounts_per_byte.get(capacity, 0.0) + 1 / pairs
        self.seconds_per_byte = max(share / c.rate_per_s for c, share in self.amounts_per_byte.items())
        self.latency_s = max(route.latency_s for route in routes)


class KvTransfer:
    """Moves requests from prefill to decode replicas.

    Args:
        receivers: the decode replicas, with the GPU names of their ranks.
        senders: GPU names of the ranks of every prefill replica, by its index.
        bytes_per_token: KV bytes of a token over all layers (and, under MLA, once).
        moved: told which decode replica a request goes to.
        layerwise: layers are sent while later ones are computed, so only the last layer's share starts at the end.
    """

    def __init__(
        self,
        env: simpy.Environment,
        fluid: Fluid,
        deployment: Deployment,
        wires: Wires,
        senders: Mapping[int, list[str]],
        receivers: Items[tuple[Replica, list[str]]],
        *,
        bytes_per_token: float,
        max_model_len: int,
        layerwise: bool,
        moved: Callable[[Sequence, Replica], None],
    ) -> None:
        self.env = env
        self._fluid = fluid
        self._deployment = deployment
        self._wires = wires
        self._senders = senders
        self._receivers = receivers
        self._bytes_per_token = bytes_per_token
        self._max_model_len = max_model_len
        self._moved = moved
        self._layers = len(deployment.model.layers) if layerwise else 1
        self._routes: dict[tuple[int, int], Route] = {}
        self._queues: dict[int, deque[tuple[Sequence, Replica]]] = {replica.index: deque() for replica, _ in receivers}
        """Requests whose blocks are not free yet, for each receiver."""
        self._expected = {replica.index: 0 for replica, _ in receivers}
        """Requests on their way to each receiver."""
        for replica, _ in receivers:
            replica.at_boundary = self._serve

    def hand_over(self, seq: Sequence, sender: Replica, now_s: float) -> None:
        """`seq` has its first token: its KV cache goes to the decode replica with the fewest requests."""
        seq.limit_tokens = min(seq.prompt_tokens + seq.output_tokens, self._max_model_len)
        seq.state = WAITING
        seq.computed_tokens = seq.known_tokens - 1
        seq.gap_since_s = now_s
        if not isinstance(sender.scheduler.pool, PrefixPool):
            sender.scheduler.pool.free -= sender.scheduler.pool.held(seq)  # kept until the bytes have arrived
        replica = min((r for r, _ in self._receivers), key=lambda r: r.outstanding + self._expected[r.index])
        self._moved(seq, replica)
        self._expected[replica.index] += 1
        self._queues[replica.index].append((seq, sender))
        replica.nudge()

    def _serve(self, replica: Replica) -> None:
        """Starts the transfers whose blocks `replica` can reserve now, first come first served."""
        queue, pool = self._queues[replica.index], replica.scheduler.pool
        if replica.scheduler.waiting and not replica.scheduler.running:
            self._unblock(replica)
        while queue:
            seq, sender = queue[0]
            blocks = -(-seq.computed_tokens // pool.block_size)
            if blocks > pool.free:
                return
            queue.popleft()
            seq.blocks = []
            pool.take(seq, blocks)
            self._send(seq, sender, replica)

    def _unblock(self, replica: Replica) -> None:
        """Nothing runs, and the first in the queue finds no room: one behind it whose KV cache is here already goes first.

        Where even that lacks a block, the last of those gives its own up, to be computed again.
        """
        waiting, pool = replica.scheduler.waiting, replica.scheduler.pool
        holders = [seq for seq in waiting if seq.computed_tokens]
        gives_up = not pool.free and len(holders) > 1
        if not holders or (waiting[0] is holders[0] and not gives_up):
            return
        if gives_up:
            pool.release(holders[-1])
            holders[-1].computed_tokens = 0
            holders[-1].preemptions += 1
        waiting.remove(holders[0])
        waiting.appendleft(holders[0])
        look = self.env.timeout(0.0)
        assert look.callbacks is not None
        look.callbacks.append(lambda _: replica.nudge())

    def _send(self, seq: Sequence, sender: Replica, receiver: Replica) -> None:
        key = (sender.index, receiver.index)
        route = self._routes.get(key)
        if route is None:
            ranks = next(names for replica, names in self._receivers if replica is receiver)
            route = self._routes[key] = Route(self._deployment, self._senders[sender.index], ranks, self._wires)
        size_bytes = seq.computed_tokens * self._bytes_per_token / self._layers
        amounts = {capacity: share * size_bytes for capacity, share in route.amounts_per_byte.items()}
        done = self._fluid.start(amounts, route.seconds_per_byte * size_bytes, route.latency_s)
        disturbed = self._wires.listeners(amounts)
        for replica in disturbed:
            replica.disturb(1)

        def arrived(_: Event) -> None:
            for replica in disturbed:
                replica.disturb(-1)
            pool = sender.scheduler.pool
            if not isinstance(pool, PrefixPool):
                pool.free += pool.held(seq)
                sender.nudge()
            self._expected[receiver.index] -= 1
            receiver.submit(seq)

        assert done.callbacks is not None
        done.callbacks.append(arrived)
